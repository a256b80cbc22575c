//! Numbers of JSON, compared by value: `1`, `1.0` and `10e-1` are one number.

use std::cmp::Ordering;

/// A number: exact where its digits fit, and rounded as everybody rounds it beyond.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number {
    value: f64,
    /// Digits and a power of ten, without zeros at the end.
    exact: Option<(i128, i32)>,
}

impl Number {
    /// A number as JSON spells it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let value: f64 = text.parse().ok()?;
        Some(Self { value, exact: Self::exact(text) })
    }

    fn exact(text: &str) -> Option<(i128, i32)> {
        let (digits, exponent) = match text.find(['e', 'E']) {
            Some(at) => (&text[..at], text[at + 1..].parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        let mut number: i128 = format!("{whole}{part}").parse().ok()?;
        let mut exponent = exponent.checked_sub(i32::try_from(part.len()).ok()?)?;
        if number == 0 {
            return Some((0, 0));
        }
        while number % 10 == 0 {
            number /= 10;
            exponent = exponent.checked_add(1)?;
        }
        Some((number, exponent))
    }

    /// Both as whole numbers of the same unit.
    fn together(self, other: Self) -> Option<(i128, i128)> {
        let ((a, a_exponent), (b, b_exponent)) = (self.exact?, other.exact?);
        let unit = a_exponent.min(b_exponent);
        let scale = |number: i128, exponent: i32| {
            let power = exponent.checked_sub(unit).filter(|power| *power < 38)?;
            number.checked_mul(10i128.pow(power as u32))
        };
        Some((scale(a, a_exponent)?, scale(b, b_exponent)?))
    }

    pub(super) fn compare(self, other: Self) -> Ordering {
        match self.together(other) {
            Some((a, b)) => a.cmp(&b),
            None => self.value.total_cmp(&other.value),
        }
    }

    pub(super) fn is_whole(self) -> bool {
        self.exact.map_or(self.value.fract() == 0.0, |(_, exponent)| exponent >= 0)
    }

    pub(super) fn is_multiple_of(self, unit: Self) -> bool {
        match self.together(unit) {
            Some((_, 0)) => false,
            Some((number, unit)) => number % unit == 0,
            None => self.value % unit.value == 0.0,
        }
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.compare(*other) == Ordering::Equal
    }
}
