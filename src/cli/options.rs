//! The options of an argument that has several, with commas between them: `KEY=VALUE,KEY`.

use std::collections::HashSet;

/// Returns the options.
///
/// # Errors
/// If one is given twice.
pub(super) fn each_once<'a>(
    options: impl Iterator<Item = &'a str>,
) -> Result<Vec<&'a str>, String> {
    let options: Vec<&str> = options.collect();
    let mut seen = HashSet::new();
    let key = |option: &&'a str| option.split('=').next().unwrap_or_default();
    match options.iter().map(key).find(|key| !seen.insert(*key)) {
        Some(key) => Err(format!("`{key}` is given twice")),
        None => Ok(options),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_given_once() {
        let read = |text: &'static str| each_once(text.split(','));
        assert_eq!(read("ro,serial=a=b").unwrap(), ["ro", "serial=a=b"]);
        for (text, key) in [("ro,queues=2,ro", "`ro`"), ("mac=1,mac=2", "`mac`"), ("a,a=1", "`a`")]
        {
            assert_eq!(read(text).unwrap_err(), format!("{key} is given twice"));
        }
    }
}
