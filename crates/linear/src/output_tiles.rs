use crate::kernels::TILE;

/// Some of a layer's outputs, in tiles of 16 neighbors, which are multiplied together.
///
/// # Example
/// ```
/// use breakers_linear::OutputTiles;
///
/// // Outputs 3 and 40: the first tile and the third.
/// let tiles = OutputTiles::from_words([1 << 3, 1 << 8]);
/// assert_eq!(tiles.n_tiles(), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputTiles {
    /// Ascending.
    tiles: Vec<u32>,
}

impl OutputTiles {
    /// Outputs in a tile.
    pub const WIDTH: usize = TILE;

    /// The tiles that hold these outputs: bit `i % 32` of word `i / 32` stands for output `i`. In a layer
    /// over several matrices each begins with a tile of its own, so that outputs are counted with what fills
    /// the last tile of the matrices before.
    pub fn from_words(words: impl IntoIterator<Item = u32>) -> Self {
        const HALF: u32 = (1 << TILE) - 1;
        let mut tiles = Vec::new();
        for (first, word) in (0u32..).step_by(u32::BITS as usize / TILE).zip(words) {
            if word & HALF != 0 {
                tiles.push(first);
            }
            if word >> TILE != 0 {
                tiles.push(first + 1);
            }
        }
        Self { tiles }
    }

    /// Number of tiles.
    pub fn n_tiles(&self) -> usize {
        self.tiles.len()
    }

    pub(crate) fn tiles(&self) -> &[u32] {
        &self.tiles
    }
}
