//! Parses one line of QMP (docs/interop/qmp-spec.rst of QEMU), whatever the peer sends.

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::foreign::error::words;

/// The kinds of lines.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum QmpLine<T> {
    /// The monitor's greeting.
    Greeting,
    /// An event of the guest, or the answer to another command.
    Other,
    /// The answer to this command.
    Answer(T),
    /// The command was refused, with this message.
    Refused(String),
}

#[derive(Deserialize)]
struct Raw<T> {
    #[serde(rename = "QMP")]
    greeting: Option<IgnoredAny>,
    event: Option<IgnoredAny>,
    id: Option<u64>,
    error: Option<RawError>,
    #[serde(rename = "return")]
    answer: Option<T>,
}

/// The fields that give only the kind of a line.
#[derive(Deserialize)]
struct Kind {
    event: Option<IgnoredAny>,
    id: Option<u64>,
}

#[derive(Deserialize)]
struct RawError {
    #[serde(default)]
    class: String,
    #[serde(default)]
    desc: String,
}

/// Parses a line as the answer to command `id`, or as another line that may come in between.
///
/// # Errors
/// A message if the line is not valid.
pub(super) fn parse<T: DeserializeOwned>(line: &[u8], id: u64) -> Result<QmpLine<T>, String> {
    let raw: Raw<T> = match serde_json::from_slice(line) {
        Ok(raw) => raw,
        // The answer to another command may have another shape.
        Err(error) => {
            return match serde_json::from_slice::<Kind>(line) {
                Ok(kind) if kind.event.is_some() || kind.id.is_some_and(|it| it != id) => {
                    Ok(QmpLine::Other)
                }
                _ => Err(words(&error.to_string())),
            };
        }
    };
    if raw.greeting.is_some() {
        Ok(QmpLine::Greeting)
    } else if raw.event.is_some() {
        Ok(QmpLine::Other)
    } else if let Some(error) = raw.error {
        // The error for a line that QEMU could not parse has no id.
        let is_ours = raw.id.is_none_or(|it| it == id);
        let text = words(&format!("{} ({})", error.desc, error.class));
        Ok(if is_ours { QmpLine::Refused(text) } else { QmpLine::Other })
    } else if raw.id != Some(id) {
        Ok(QmpLine::Other)
    } else {
        raw.answer.map(QmpLine::Answer).ok_or_else(|| "a line that is not QMP".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    struct Balloon {
        actual: u64,
    }

    fn read(text: &str) -> Result<QmpLine<Balloon>, String> {
        parse(text.as_bytes(), 7)
    }

    #[test]
    fn answers_are_distinguished_from_other_lines() {
        let answer = read(r#"{"return": {"actual": 4096, "more": []}, "id": 7}"#);
        assert_eq!(answer, Ok(QmpLine::Answer(Balloon { actual: 4096 })));
        for other in [
            r#"{"timestamp": {"seconds": 1}, "event": "STOP", "data": {"actual": "x"}}"#,
            r#"{"return": [], "id": 6}"#,
            r#"{"return": {"actual": 1}}"#,
            r#"{"error": {"class": "A", "desc": "b"}, "id": 6}"#,
        ] {
            assert_eq!(read(other), Ok(QmpLine::Other), "{other}");
        }
        let greeting = r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#;
        assert_eq!(read(greeting), Ok(QmpLine::Greeting));
        let refused = r#"{"error": {"class": "DeviceNotActive", "desc": "No balloon"}, "id": 7}"#;
        assert_eq!(read(refused), Ok(QmpLine::Refused("No balloon (DeviceNotActive)".into())));
    }

    #[test]
    fn nonsense_gives_a_short_error() {
        for bad in [
            "",
            "hello",
            "[]",
            "{}x",
            r#"{"return": {"actual": -1}, "id": 7}"#,
            r#"{"return": {"actual": "lots"}, "id": 7}"#,
            r#"{"id": 7}"#,
        ] {
            let said = read(bad).unwrap_err();
            assert!(said.len() <= 800, "{said}");
        }
        assert!(read(&"[".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_classified(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse::<Balloon>(&bytes, 1);
        }

        #[test]
        fn any_json_is_classified(text in r#"\{("(id|return|error|event|QMP)": ?([0-9]{1,3}|\{\}|"x"|null),?){0,4}\}"#) {
            let _ = read(&text);
        }
    }
}
