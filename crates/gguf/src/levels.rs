//! The numbers that codes stand for.

/// What a code stands for, before scale and offset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Levels {
    /// `least, least + 1, …, least + n - 1`.
    Steps {
        /// The level of code 0.
        least: i16,
        /// How many levels there are.
        n: u16,
    },
    /// Ascending numbers; codes are their indices.
    Table(&'static [f32]),
}

impl Levels {
    /// The least and the largest level.
    #[inline]
    pub fn range(self) -> (f32, f32) {
        match self {
            Levels::Steps { least, n } => (f32::from(least), f32::from(least) + f32::from(n) - 1.0),
            Levels::Table(table) => (table[0], table[table.len() - 1]),
        }
    }

    /// The level of a code.
    ///
    /// # Panics
    /// For a table, if it has no such code.
    #[inline]
    pub fn level(self, code: u8) -> f32 {
        match self {
            Levels::Steps { least, .. } => f32::from(least) + f32::from(code),
            Levels::Table(table) => table[usize::from(code)],
        }
    }

    /// For each number, finds the code whose level is nearest, and that level.
    ///
    /// ```
    /// use breakers_gguf::Levels;
    ///
    /// let (mut codes, mut levels) = ([0; 2], [0.0; 2]);
    /// Levels::Steps { least: -8, n: 16 }.nearest(&[-1.2, 90.0], &mut codes, &mut levels);
    /// assert_eq!((codes, levels), ([7, 15], [-1.0, 7.0]));
    /// ```
    #[inline(always)]
    pub fn nearest<const N: usize>(self, x: &[f32; N], codes: &mut [u8; N], levels: &mut [f32; N]) {
        match self {
            Levels::Steps { least, n } => {
                let (least, most) = (f32::from(least), f32::from(least) + f32::from(n) - 1.0);
                for i in 0..N {
                    let level = x[i].round_ties_even().max(least).min(most);
                    levels[i] = level;
                    codes[i] = (level - least) as u8;
                }
            }
            Levels::Table(table) => {
                let mut found = [0i32; N];
                for pair in table.windows(2) {
                    let middle = 0.5 * (pair[0] + pair[1]);
                    for i in 0..N {
                        found[i] += i32::from(x[i] > middle);
                    }
                }
                for i in 0..N {
                    codes[i] = found[i] as u8;
                    levels[i] = table[found[i] as usize];
                }
            }
        }
    }
}
