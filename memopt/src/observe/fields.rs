//! The line format that `smaps_rollup`, `status` and `meminfo` share: `Name:   123 kB`.

use super::ObserveError;

/// The text of one of these files; `file` names its kind in messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a> {
    pub(super) file: &'static str,
    pub(super) text: &'a str,
}

impl Fields<'_> {
    /// Returns `field` in bytes; an error if it is missing.
    pub(super) fn required(&self, field: &'static str) -> Result<u64, ObserveError> {
        self.optional(field)?.ok_or(ObserveError::Missing { file: self.file, field })
    }

    /// Returns `field` in bytes, if this kernel has it.
    pub(super) fn optional(&self, field: &'static str) -> Result<Option<u64>, ObserveError> {
        let found = self
            .text
            .lines()
            .find_map(|line| line.strip_prefix(field).and_then(|rest| rest.strip_prefix(':')));
        let Some(value) = found else { return Ok(None) };
        kilobytes(value).map(Some).ok_or_else(|| ObserveError::Amount {
            file: self.file,
            field,
            value: value.trim().chars().take(40).collect(),
        })
    }
}

/// Parses `  123 kB` into bytes; the kernel's kB are 1024 bytes
/// (Documentation/filesystems/proc.rst).
fn kilobytes(value: &str) -> Option<u64> {
    let digits = value.trim().strip_suffix("kB")?.trim_end();
    // The parser of u64 would also accept a plus sign.
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(text: &str) -> Fields<'_> {
        Fields { file: "smaps_rollup", text }
    }

    #[test]
    fn names_are_matched_whole() {
        let text = "PssDirty:  4 kB\nPss:    8 kB\n";
        assert_eq!(fields(text).optional("Pss").expect("an amount"), Some(8192));
        assert_eq!(fields(text).optional("Rss").expect("no field"), None);
    }

    #[test]
    fn rejects_invalid_amounts() {
        for value in ["", "kB", "-1 kB", "+1 kB", "1", "1 MB", "1.5 kB", "18446744073709551615 kB"]
        {
            let text = format!("Rss: {value}\n");
            let refused = fields(&text).required("Rss");
            assert!(matches!(refused, Err(ObserveError::Amount { .. })), "{value}: {refused:?}");
        }
    }

    proptest! {
        #[test]
        fn reads_back_every_amount(kb in 0..u64::MAX / 1024, spaces in 0usize..20) {
            let text = format!("Size: 1 kB\nRss:{}{kb} kB\n", " ".repeat(spaces));
            prop_assert_eq!(fields(&text).required("Rss").expect("an amount"), kb * 1024);
        }

        #[test]
        fn any_text_gives_a_number_or_a_typed_error(text in "(?s).{0,400}") {
            let _ = fields(&text).required("Rss");
            let _ = fields(&format!("Rss:{text}")).required("Rss");
        }
    }
}
