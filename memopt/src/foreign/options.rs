//! The syntax of QEMU's and Cloud Hypervisor's options: `first,key=value,flag`, sizes, and
//! booleans.

/// The most parts of one option that are read.
const PARTS_MAX: usize = 256;

/// The parts of one option. In QEMU's syntax a double comma stands for a comma in a value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    parts: Vec<(String, Option<String>)>,
}

impl Options {
    pub(super) fn parse(text: &str) -> Self {
        let mut parts = vec![String::new()];
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            if character == ',' && characters.next_if_eq(&',').is_none() {
                if parts.len() == PARTS_MAX {
                    break;
                }
                parts.push(String::new());
            } else if let Some(part) = parts.last_mut() {
                part.push(character);
            }
        }
        let pair = |part: String| match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (part, None),
        };
        Self { parts: parts.into_iter().map(pair).collect() }
    }

    /// Returns the first part if it has no key: `unix:/path` in `unix:/path,server=on`.
    pub(super) fn first(&self) -> Option<&str> {
        match self.parts.first() {
            Some((word, None)) if !word.is_empty() => Some(word),
            _ => None,
        }
    }

    /// Returns the value of `key`; the last one counts, as in QEMU.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let found = self.parts.iter().rev().find(|(name, _)| name == key);
        found.and_then(|(_, value)| value.as_deref())
    }

    /// Returns the value of `key`, or else the first part if it has no key.
    pub(super) fn get_or_first(&self, key: &str) -> Option<&str> {
        self.get(key).or_else(|| self.first())
    }

    /// Returns whether `key` is on; a bare `key` is.
    pub(super) fn is_on(&self, key: &str, default: bool) -> bool {
        let found = self.parts.iter().rev().find(|(name, _)| name == key);
        match found.map(|(_, value)| value.as_deref()) {
            None => default,
            Some(None | Some("on" | "yes" | "true" | "y")) => true,
            Some(Some(_)) => false,
        }
    }
}

/// Parses a size such as `2048`, `2G`, `1.5G` or `512MiB` into bytes; `unit` applies without a
/// suffix.
pub(super) fn size(text: &str, unit: u64) -> Option<u64> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let factor = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => unit,
        "b" => 1,
        "k" | "kib" | "kb" => 1 << 10,
        "m" | "mib" | "mb" => 1 << 20,
        "g" | "gib" | "gb" => 1 << 30,
        "t" | "tib" | "tb" => 1 << 40,
        "p" => 1 << 50,
        "e" => 1 << 60,
        _ => return None,
    };
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(hexadecimal) = digits.strip_prefix("0x") {
        return u64::from_str_radix(hexadecimal, 16).ok()?.checked_mul(factor);
    }
    match digits.split_once('.') {
        None if is_number(digits) => digits.parse::<u64>().ok()?.checked_mul(factor),
        Some((whole, part)) if is_number(whole) && is_number(part) && part.len() <= 9 => {
            let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
            let fraction = format!("0.{part}0").parse::<f64>().ok()? * factor as f64;
            whole.checked_add(fraction as u64)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn commas_in_values_are_written_twice() {
        let options = Options::parse("guest=a,,b,debug-threads=on,id");
        assert_eq!(options.get("guest"), Some("a,b"));
        assert!(options.is_on("debug-threads", false) && options.is_on("id", false));
        assert!(!Options::parse("share=off").is_on("share", true));
        assert_eq!((options.first(), Options::parse("web,x=1").first()), (None, Some("web")));
        assert_eq!(Options::parse("").first(), None);
    }

    #[test]
    fn sizes_are_as_qemu_reads_them() {
        for (text, bytes) in [
            ("2048", Some(2 << 30)),
            ("2G", Some(2 << 30)),
            ("1.5g", Some(3 << 29)),
            ("0x10", Some(16 << 20)),
            ("512MiB", Some(512 << 20)),
            ("", None),
            ("-1", None),
            ("G", None),
            ("1.G2", None),
            ("99999999999T", None),
            ("1Q", None),
        ] {
            assert_eq!(size(text, 1 << 20), bytes, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_split(text in "(?s).{0,200}") {
            let options = Options::parse(&text);
            let _ = (options.first(), options.get("a"), options.is_on("a", true), size(&text, 1));
        }

        #[test]
        fn values_survive_their_quoting(value in "[a-z,=/]{1,20}") {
            let text = format!("id=x,path={},server=on", value.replace(',', ",,"));
            let options = Options::parse(&text);
            prop_assert_eq!(options.get("path"), Some(value.as_str()));
        }
    }
}
