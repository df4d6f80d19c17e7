//! Cron expressions: five fields, or a nickname such as `@daily`, in a time zone.

use std::fmt;

use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;

use super::zone::Zone;

/// The longest expression, in bytes.
const TEXT_BYTES_MAX: usize = 128;
/// Where the check that an expression ever matches starts: 2024-01-01, a leap year.
const LEAP_YEAR: u64 = 1_704_067_200;

/// A cron expression and its time zone.
///
/// Its times are Unix times of whole minutes. When local time is set forward, a time of day in the
/// gap (`30 2 * * *`) moves to the first instant after it, and the times of an interval
/// (`*/10 * * * *`) in the gap are omitted. When local time is set back, a time of day occurs once,
/// the first time; an interval continues through both hours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    text: String,
    parsed: croner::Cron,
    zone: Zone,
}

/// Why a cron expression is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    /// The expression cannot be parsed.
    #[error(
        "`{text}` is not a cron expression (minute hour day month weekday, as \"30 2 * * 1-5\"): {cause}"
    )]
    Malformed {
        /// The expression as written.
        text: String,
        /// The parser's message.
        cause: String,
    },
    /// No date ever matches.
    #[error("`{text}` never comes: there is no such day")]
    Never {
        /// The expression as written.
        text: String,
    },
}

impl Cron {
    /// Parses an expression in time zone `zone`.
    ///
    /// # Errors
    /// If it does not have five fields, a field is out of range, or no date ever matches.
    pub fn parse(text: &str, zone: Zone) -> Result<Self, CronError> {
        let shown = || text.chars().take(TEXT_BYTES_MAX).collect::<String>();
        let malformed = |cause: String| CronError::Malformed { text: shown(), cause };
        if text.len() > TEXT_BYTES_MAX {
            return Err(malformed(format!("it is longer than {TEXT_BYTES_MAX} bytes")));
        }
        let parser =
            CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        check(text).map_err(malformed)?;
        let parsed = parser.parse(text).map_err(|error| malformed(cause(&parser, text, &error)))?;
        let cron = Self { text: text.trim().to_owned(), parsed, zone };
        match cron.after(LEAP_YEAR) {
            Some(_) => Ok(cron),
            None => Err(CronError::Never { text: shown() }),
        }
    }

    /// Returns the first time after `unix_seconds`, in Unix seconds; `None` if the calendar ends
    /// before that.
    #[must_use]
    pub fn after(&self, unix_seconds: u64) -> Option<u64> {
        let begin = Timestamp::from_second(i64::try_from(unix_seconds).ok()?).ok()?;
        let begin = begin.to_zoned(self.zone.inner().clone());
        let found = self.parsed.find_next_occurrence(&begin, false).ok()?;
        let found = u64::try_from(found.timestamp().as_second()).ok()?;
        (found > unix_seconds).then_some(found)
    }

    /// Returns the last time at or before `unix_seconds`.
    #[must_use]
    pub fn until(&self, unix_seconds: u64) -> Option<u64> {
        let end = Timestamp::from_second(i64::try_from(unix_seconds).ok()?).ok()?;
        let end = end.to_zoned(self.zone.inner().clone());
        let found = self.parsed.find_previous_occurrence(&end, true).ok()?;
        let found = u64::try_from(found.timestamp().as_second()).ok()?;
        (found <= unix_seconds).then_some(found)
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.zone)
    }
}

/// A field of an expression.
struct Field {
    name: &'static str,
    range: &'static str,
    /// Words that may be used instead of a number.
    words: &'static [&'static str],
    /// The suffix that a number may have.
    mark: Option<char>,
}

impl Field {
    const fn new(
        name: &'static str,
        range: &'static str,
        words: &'static [&'static str],
        mark: Option<char>,
    ) -> Self {
        Self { name, range, words, mark }
    }

    /// Refuses text without a meaning in this field. The parser would accept much of it with
    /// another meaning: `SUN5` as Friday, or an empty list item as a shorter list.
    fn check(&self, text: &str) -> Result<(), String> {
        let is_weekday = self.name == "weekday";
        let list = text.strip_prefix('+').filter(|_| is_weekday).unwrap_or(text);
        for part in list.split(',') {
            if part.is_empty() {
                let name = self.name;
                return Err(format!("the {name} `{text}` has nothing before or after a comma"));
            }
            if !self.takes(part) {
                return Err(format!("`{part}` means nothing in the {} `{text}`", self.name));
            }
        }
        Ok(())
    }

    /// Returns whether a part of a list has a valid form: `*`, `5`, `mon-fri`, `10-40/5`, `15W`,
    /// `fri#2`.
    fn takes(&self, part: &str) -> bool {
        let (range, step) = part.split_once('/').map_or((part, "1"), |split| split);
        let is_range = match (range.split_once('-'), range.split_once('#')) {
            (Some((first, last)), _) => self.is_value(first) && self.is_value(last),
            (None, Some((day, count))) => self.is_value(day) && is_number(count),
            (None, None) => ["*", "?"].contains(&range) || self.is_value(range),
        };
        is_range && is_number(step)
    }

    fn is_value(&self, text: &str) -> bool {
        let number = self.mark.and_then(|mark| text.strip_suffix(mark)).unwrap_or(text);
        is_number(number) || self.words.iter().any(|word| word.eq_ignore_ascii_case(text))
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: [&str; 14] = [
    "SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "SUNL", "MONL", "TUEL", "WEDL", "THUL",
    "FRIL", "SATL",
];
const FIELDS: [Field; 5] = [
    Field::new("minute", "0 to 59", &[], None),
    Field::new("hour", "0 to 23", &[], None),
    Field::new("day", "1 to 31", &["L", "W", "LW"], Some('W')),
    Field::new("month", "1 to 12", &MONTHS, None),
    Field::new("weekday", "0 to 7", &WEEKDAYS, Some('L')),
];
/// Nicknames that replace an expression.
const NICKNAMES: [&str; 6] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@hourly"];

/// Refuses text that the parser would misinterpret.
fn check(text: &str) -> Result<(), String> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    if text.trim().starts_with('@') {
        let is_known = NICKNAMES.iter().any(|name| name.eq_ignore_ascii_case(text.trim()));
        let known = NICKNAMES.join(", ");
        return if is_known { Ok(()) } else { Err(format!("names: {known}")) };
    }
    if fields.len() != FIELDS.len() {
        return Err(format!("it has {} fields, not {}", fields.len(), FIELDS.len()));
    }
    fields.into_iter().zip(&FIELDS).try_for_each(|(text, field)| field.check(text))
}

/// Returns the parser's message, naming the field if one field alone is wrong.
fn cause(parser: &CronParser, text: &str, error: &croner::errors::CronError) -> String {
    let wrong_alone = |(index, (text, field)): (usize, (&str, &Field))| {
        let mut alone = ["*"; FIELDS.len()];
        alone[index] = text;
        let error = parser.parse(&alone.join(" ")).err()?;
        Some(format!("the {} `{text}` (of {}): {}", field.name, field.range, lower_case(&error)))
    };
    let found = text.split_whitespace().zip(&FIELDS).enumerate().find_map(wrong_alone);
    found.unwrap_or_else(|| lower_case(error))
}

/// Formats the parser's sentence as part of a message of lighter.
fn lower_case(error: &croner::errors::CronError) -> String {
    let text = error.to_string();
    let text = text.trim_end_matches('.');
    let text = text.strip_prefix("Component error: ").unwrap_or(text);
    let mut characters = text.chars();
    characters
        .next()
        .map(|first| first.to_lowercase().chain(characters).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The rules of Paris: forward on the last Sunday of March at 02:00, back on that of October at
    /// 03:00.
    const PARIS: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

    fn unix(utc: &str) -> u64 {
        utc.parse::<Timestamp>().unwrap().as_second().try_into().unwrap()
    }

    fn paris(text: &str) -> Cron {
        Cron::parse(text, Zone::posix(PARIS)).unwrap()
    }

    /// The times of `cron` from one time to another, excluding the first and including the last.
    fn times(cron: &Cron, from: &str, to: &str) -> Vec<String> {
        let next = |at: &u64| cron.after(*at);
        let all = std::iter::successors(next(&unix(from)), next);
        let show = |at: u64| Timestamp::from_second(at as i64).unwrap().to_string();
        all.take_while(|at| *at <= unix(to)).map(show).collect()
    }

    #[test]
    fn five_fields_names_and_nicknames_are_read() {
        let from = unix("2026-11-20T19:00:30Z");
        for (text, next) in [
            ("30 2 * * *", "2026-11-21T02:30:00Z"),
            ("*/20 * * * *", "2026-11-20T19:20:00Z"),
            ("0 4 * * MON-FRI", "2026-11-23T04:00:00Z"),
            ("0 0 29 2 *", "2028-02-29T00:00:00Z"),
            ("0 3 L * *", "2026-11-30T03:00:00Z"),
            ("0 3 * * 5L", "2026-11-27T03:00:00Z"),
            ("0 3 * * friL", "2026-11-27T03:00:00Z"),
            ("0 3 15W * *", "2026-12-15T03:00:00Z"),
            ("0 3 * * fri#2", "2026-12-11T03:00:00Z"),
            ("10-40/15 3,4 * jan-mar *", "2027-01-01T03:10:00Z"),
            ("@daily", "2026-11-21T00:00:00Z"),
        ] {
            let cron = Cron::parse(text, Zone::utc()).unwrap();
            assert_eq!(cron.after(from), Some(unix(next)), "{text}");
        }
    }

    #[test]
    fn an_invalid_expression_is_refused_with_an_example() {
        let long = "1,".repeat(5000);
        for text in [
            "",
            "* * * *",
            "0 MON * * *",
            "0 0 JAN * *",
            "0 0 * FRI *",
            "0 0 * * MAY",
            "0 0 0 * * *",
            "0 0 1 1 * 2027",
            "60 * * * *",
            "x",
            &long,
            "\u{e9}",
        ] {
            let error = Cron::parse(text, Zone::utc()).unwrap_err();
            assert!(error.to_string().contains("minute hour day"), "{error}");
            assert!(error.to_string().len() < 400, "{error}");
        }
        for (text, field) in [
            ("60 * * * *", "the minute `60` (of 0 to 59): "),
            ("0 25 * * *", "the hour `25` (of "),
            ("0 0 0 * *", "the day `0` (of "),
            ("0 0 * 13 *", "the month `13` (of "),
            ("0 0 * * 1-9", "the weekday `1-9` (of "),
            (", * * * *", "the minute `,` has nothing before or after a comma"),
            ("0 0 * * MON,TUE,", "the weekday `MON,TUE,` has nothing"),
            ("0 0 3 * * *", "it has 6 fields, not 5"),
            ("0 0 * * SUN5", "`SUN5` means nothing in the weekday"),
            ("0 0 * 1JAN *", "`1JAN` means nothing in the month"),
            ("0 0 15W3 * *", "`15W3` means nothing in the day"),
            ("0 0 * * FRI#MON", "`FRI#MON` means nothing in the weekday"),
            ("0 0 * * +,MON", "the weekday `+,MON` has nothing"),
            ("0 0 * * +", "the weekday `+` has nothing"),
            ("5% * * * *", "`5%` means nothing in the minute"),
            ("@reboot", "names: @yearly, @annually, @monthly"),
            ("0 3 * * L", "`L` means nothing in the weekday"),
            ("0 0 * FRI *", "means nothing in the month `FRI`"),
        ] {
            let error = Cron::parse(text, Zone::utc()).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        let never = Cron::parse("0 0 30 2 *", Zone::utc()).unwrap_err();
        assert_eq!(never.to_string(), "`0 0 30 2 *` never comes: there is no such day");
    }

    #[test]
    fn a_time_of_day_in_the_hour_left_out_comes_right_after_it() {
        let (from, to) = ("2027-03-27T12:00:00Z", "2027-03-29T12:00:00Z");
        let nightly = times(&paris("30 2 * * *"), from, to);
        assert_eq!(nightly, ["2027-03-28T01:00:00Z", "2027-03-29T00:30:00Z"]);
    }

    #[test]
    fn an_interval_leaves_out_the_hour_left_out() {
        let (from, to) = ("2027-03-28T00:20:00Z", "2027-03-28T01:30:00Z");
        let often = times(&paris("*/30 * * * *"), from, to);
        assert_eq!(often, ["2027-03-28T00:30:00Z", "2027-03-28T01:00:00Z", "2027-03-28T01:30:00Z"]);
    }

    #[test]
    fn a_time_of_day_in_the_hour_repeated_comes_once_and_an_interval_in_both() {
        let (from, to) = ("2026-10-24T12:00:00Z", "2026-10-25T12:00:00Z");
        assert_eq!(times(&paris("30 2 * * *"), from, to), ["2026-10-25T00:30:00Z"]);
        let both = times(&paris("30 */1 * * *"), "2026-10-25T00:00:00Z", "2026-10-25T02:00:00Z");
        assert_eq!(both, ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"]);
    }

    #[test]
    fn times_that_no_calendar_has_are_no_times() {
        let cron = Cron::parse("0 0 * * *", Zone::utc()).unwrap();
        assert_eq!(cron.after(u64::MAX), None);
        assert_eq!(cron.until(u64::MAX), None);
        assert_eq!(cron.after(400_000_000_000), None);
    }

    fn expressions() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "30 2 * * *",
            "0 3 * * *",
            "0 2 * * 0",
            "*/7 * * * *",
            "15 */2 * * *",
            "* * * * 1",
            "0 0 29 2 *",
            "59 23 L * *",
        ])
    }

    /// Text similar to an expression, valid or not.
    fn nearly_expressions() -> impl Strategy<Value = String> {
        let minute = "[*](/[1-9]{1,2})?|[0-5]?[0-9]([-,][0-6][0-9]){0,2}|[LW?]";
        let hour = "[*](/[1-9])?|1?[0-9]([-,]2[0-4])?|MON";
        let day = "[*?]|[1-3]?[0-9]W?|L|LW|[1-9],2[0-9]";
        let month = "[*]|1?[0-9]|JAN-DEC|FEB|2/3";
        let weekday = "[*?]|[0-8](#[1-6])?|FRIL|[+]?MON-FRI|SUN";
        let fields = (minute, hour, day, month, weekday);
        prop_oneof![
            9 => fields.prop_map(|(a, b, c, d, e)| format!("{a} {b} {c} {d} {e}")),
            1 => "[0-9*/,LW#?A-Z@+ -]{0,40}",
        ]
    }

    proptest! {
        /// Any text is refused, or has a time and a next one after it.
        #[test]
        fn no_expression_makes_it_panic(text in nearly_expressions(), at in 0_u64..4_000_000_000) {
            if let Ok(cron) = Cron::parse(&text, Zone::posix(PARIS)) {
                let next = cron.after(at).unwrap_or(u64::MAX);
                prop_assert!(next > at);
                prop_assert!(cron.until(at).unwrap_or_default() <= at);
            }
        }

        /// Forward and backward searches agree, also on days with a change of local time.
        #[test]
        fn the_last_time_is_the_one_with_no_other_behind_it(
            text in expressions(),
            at in 1_700_000_000_u64..1_900_000_000,
            near_change in prop::option::of(-9000_i64..9000),
        ) {
            let changes = [unix("2027-03-28T01:00:00Z"), unix("2026-10-25T01:00:00Z")];
            let at = near_change.map_or(at, |by| changes[(at % 2) as usize].saturating_add_signed(by));
            let cron = paris(text);
            let last = cron.until(at).unwrap();
            prop_assert!(last <= at);
            prop_assert_eq!(last % 60, 0);
            let next = cron.after(last).unwrap();
            prop_assert!(next > at, "{} is before {}", next, at);
            prop_assert_eq!(cron.after(at), Some(next));
        }
    }
}
