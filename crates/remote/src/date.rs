//! The date format that HTTP servers send.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The time until a date such as `Sun, 06 Nov 1994 08:49:37 GMT`: zero if it is in the past, `None` if it is
/// not a date.
///
/// # Source
/// RFC 9110, section 5.6.7, IMF-fixdate; the two obsolete forms are not read.
pub(crate) fn until(date: &str) -> Option<Duration> {
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(seconds(date)?))?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Seconds since 1970.
fn seconds(date: &str) -> Option<u64> {
    let (_, rest) = date.split_once(", ")?;
    let words: Vec<&str> = rest.split(' ').collect();
    let [day, month, year, time, "GMT"] = words[..] else { return None };
    let number = |text: &str, len: usize| {
        let is_good = text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit());
        is_good.then(|| text.parse::<u64>().ok()).flatten()
    };
    let (day, year) = (number(day, 2)?, number(year, 4)?);
    let month = 1 + MONTHS.iter().position(|name| *name == month)? as u64;
    let parts: Vec<&str> = time.split(':').collect();
    let [hour, minute, second] = parts[..] else { return None };
    let (hour, minute, second) = (number(hour, 2)?, number(minute, 2)?, number(second, 2)?);
    let in_range = (1..=31).contains(&day) && year >= 1970 && hour < 24 && minute < 60 && second <= 60;
    if !in_range {
        return None;
    }
    // Years are counted from March, so that a leap day is the last day of its year.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(86_400 * days + 3600 * hour + 60 * minute + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        // From `date -u +%s -d …`.
        for (date, expected) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Tue, 29 Feb 2000 23:59:59 GMT", Some(951_868_799)),
            ("Wed, 01 Mar 2000 00:00:00 GMT", Some(951_868_800)),
            ("Thu, 31 Dec 2099 12:00:00 GMT", Some(4_102_401_600)),
            ("Sun, 06 Nov 1994 08:49:37", None),
            ("Sun, 6 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 24:49:37 GMT", None),
            ("Sun, 32 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1969 08:49:37 GMT", None),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("", None),
            ("+1, +1 Jan +970 +0:+0:+0 GMT", None),
        ] {
            assert_eq!(seconds(date), expected, "{date}");
        }
        assert_eq!(until("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert!(until("Thu, 31 Dec 2099 12:00:00 GMT").unwrap() > Duration::from_secs(86_400));
    }
}
