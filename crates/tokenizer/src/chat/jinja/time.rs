//! Times as C's `strftime` writes them in the C locale.

use std::time::SystemTime;

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A time by the calendar and the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateTime {
    /// From 1970-01-01.
    days: i64,
    year: i64,
    month: i64,
    day: i64,
    second_of_day: i64,
    microsecond: i64,
}

impl DateTime {
    /// The current time in the machine's time zone.
    pub(super) fn local() -> Self {
        let now = jiff::Zoned::now();
        let now = now.datetime();
        let (year, month, day) = (i64::from(now.year()), i64::from(now.month()), i64::from(now.day()));
        let second_of_day =
            i64::from(now.hour()) * 3600 + i64::from(now.minute()) * 60 + i64::from(now.second());
        let days = days_from_civil(year, month, day);
        Self { days, year, month, day, second_of_day, microsecond: i64::from(now.subsec_nanosecond()) / 1000 }
    }

    /// A time in UTC.
    pub(super) fn utc(time: SystemTime) -> Self {
        let micros = match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
        };
        let seconds = micros.div_euclid(1_000_000);
        let (days, second_of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = civil_from_days(days);
        Self { days, year, month, day, second_of_day, microsecond: micros.rem_euclid(1_000_000) }
    }

    /// Day of the year, from 0.
    fn day_of_year(&self) -> i64 {
        self.days - days_from_civil(self.year, 1, 1)
    }

    /// 0 is Sunday.
    fn weekday(&self) -> i64 {
        (self.days + 4).rem_euclid(7)
    }

    /// Year and week by ISO 8601: weeks begin on Mondays and belong to the year that has their Thursday.
    fn iso_week(&self) -> (i64, i64) {
        let thursday = self.days - (self.weekday() + 6) % 7 + 3;
        let year = civil_from_days(thursday).0;
        (year, (thursday - days_from_civil(year, 1, 1)) / 7 + 1)
    }
}

/// Days from 1970-01-01 in the Gregorian calendar.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // If years begin in March, the leap day is at the end.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days - era * 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

/// Formats a time. `datetime.now()` has no time zone, so `%z` and `%Z` are empty. Unknown directives are left
/// unchanged, as in glibc.
pub(super) fn strftime(format: &str, time: DateTime) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let field = &rest[at..];
        let inner = &field[1..];
        let flags = inner.len() - inner.trim_start_matches(['-', '_', '0', '^', '#']).len();
        let digits =
            inner[flags..].len() - inner[flags..].trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let width = inner[flags..flags + digits].parse::<usize>().ok().map(|width| width.min(1024));
        let behind = &inner[flags + digits..];
        let behind = behind.strip_prefix(['E', 'O']).unwrap_or(behind);
        let Some(directive) = behind.chars().next() else {
            out.push_str(field);
            return out;
        };
        rest = &behind[directive.len_utf8()..];
        let length = field.len() - rest.len();
        match written(directive, &inner[..flags], width, time) {
            Some(text) => out.push_str(&text),
            None => out.push_str(&field[..length]),
        }
    }
    out.push_str(rest);
    out
}

fn written(directive: char, flags: &str, width: Option<usize>, time: DateTime) -> Option<String> {
    let (hour, minute, second) =
        (time.second_of_day / 3600, time.second_of_day / 60 % 60, time.second_of_day % 60);
    let hour_12 = (hour + 11) % 12 + 1;
    let half = if hour < 12 { "AM" } else { "PM" };
    let (weekday, day_of_year) = (time.weekday(), time.day_of_year());
    let (iso_year, iso_week) = time.iso_week();
    let pad_flag = flags.chars().rev().find(|flag| matches!(flag, '-' | '_' | '0'));
    let number = |value: i64, digits: usize, fill: char| {
        let fill = match pad_flag {
            Some('-') => return value.to_string(),
            Some('_') => ' ',
            Some(_) => '0',
            None => fill,
        };
        let text = value.to_string();
        let missing = width.unwrap_or(digits).max(digits).saturating_sub(text.len());
        fill.to_string().repeat(missing) + &text
    };
    let composed = |format: &str| text(&strftime(format, time), flags, width, pad_flag);
    let word = |word: &str| text(word, flags, width, pad_flag);
    Some(match directive {
        'a' => word(&DAYS[weekday as usize][..3]),
        'A' => word(DAYS[weekday as usize]),
        'b' | 'h' => word(&MONTHS[time.month as usize - 1][..3]),
        'B' => word(MONTHS[time.month as usize - 1]),
        'c' => composed("%a %b %e %H:%M:%S %Y"),
        'C' => number(time.year.div_euclid(100), 2, '0'),
        'd' => number(time.day, 2, '0'),
        'D' | 'x' => composed("%m/%d/%y"),
        'e' => number(time.day, 2, ' '),
        // Python's own.
        'f' => format!("{:06}", time.microsecond),
        'F' => composed("%Y-%m-%d"),
        'g' => number(iso_year.rem_euclid(100), 2, '0'),
        'G' => number(iso_year, 1, '0'),
        'H' => number(hour, 2, '0'),
        'I' => number(hour_12, 2, '0'),
        'j' => number(day_of_year + 1, 3, '0'),
        'k' => number(hour, 2, ' '),
        'l' => number(hour_12, 2, ' '),
        'm' => number(time.month, 2, '0'),
        'M' => number(minute, 2, '0'),
        'n' => "\n".to_owned(),
        'p' if flags.contains('#') => word(&half.to_lowercase()),
        'p' => word(half),
        'P' => word(&half.to_lowercase()),
        'r' => composed("%I:%M:%S %p"),
        'R' => composed("%H:%M"),
        's' => number(time.days * 86_400 + time.second_of_day, 1, '0'),
        'S' => number(second, 2, '0'),
        't' => "\t".to_owned(),
        'T' | 'X' => composed("%H:%M:%S"),
        'u' => number((weekday + 6) % 7 + 1, 1, '0'),
        'U' => number((day_of_year + 7 - weekday) / 7, 2, '0'),
        'V' => number(iso_week, 2, '0'),
        'w' => number(weekday, 1, '0'),
        'W' => number((day_of_year + 7 - (weekday + 6) % 7) / 7, 2, '0'),
        'y' => number(time.year.rem_euclid(100), 2, '0'),
        'Y' => number(time.year, 1, '0'),
        'z' | 'Z' => String::new(),
        '%' => "%".to_owned(),
        _ => return None,
    })
}

/// Words with flags and a width.
fn text(word: &str, flags: &str, width: Option<usize>, pad: Option<char>) -> String {
    let upper = flags.contains('^') || flags.contains('#') && !word.chars().any(|c| c.is_ascii_digit());
    let word = if upper { word.to_uppercase() } else { word.to_owned() };
    let word =
        if flags.contains('#') && matches!(word.as_str(), "AM" | "PM") { word.to_lowercase() } else { word };
    let fill = if pad == Some('0') { "0" } else { " " };
    fill.repeat(width.unwrap_or(0).saturating_sub(word.len())) + &word
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times() {
        for (seconds, expected) in [
            (0, "1970-01-01 Thu 001 00:00:00 12 AM"),
            (951_782_399, "2000-02-28 Mon 059 23:59:59 11 PM"),
            (951_782_400, "2000-02-29 Tue 060 00:00:00 12 AM"),
            (1_735_689_599, "2024-12-31 Tue 366 23:59:59 11 PM"),
            (4_107_542_400, "2100-03-01 Mon 060 00:00:00 12 AM"),
        ] {
            let now = DateTime::utc(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(strftime("%F %a %j %T %I %p", now), expected);
        }
        let now = DateTime::utc(SystemTime::UNIX_EPOCH + Duration::from_secs(1_736_000_000));
        assert_eq!(strftime("%d %b %Y, %-m/%-d %%", now), "04 Jan 2025, 1/4 %");
        // glibc leaves unknown directives unchanged.
        assert_eq!(strftime("%Q|%", now), "%Q|%");
        let before = DateTime::utc(SystemTime::UNIX_EPOCH - Duration::from_secs(1));
        assert_eq!(strftime("%F %T", before), "1969-12-31 23:59:59");
    }
}
