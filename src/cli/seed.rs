//! `--seed [USER-DATA][,meta-data=FILE][,network-config=FILE]`, and `seed` in a guest's file.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

/// Documents for cloud-init, as typed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SeedArg {
    /// User data: cloud-config, a script, or another form that cloud-init knows.
    pub(crate) user_data: Option<PathBuf>,
    /// Meta data; generated when absent.
    pub(crate) meta_data: Option<PathBuf>,
    /// Network configuration; cloud-init decides when absent.
    pub(crate) network_config: Option<PathBuf>,
}

impl SeedArg {
    /// Returns the files.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        let files = [&self.user_data, &self.meta_data, &self.network_config];
        files.into_iter().flatten().map(PathBuf::as_path)
    }
}

impl FromStr for SeedArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a seed needs a file".to_owned());
        }
        let mut seed = Self { user_data: None, meta_data: None, network_config: None };
        for (index, part) in text.split(',').enumerate() {
            let (place, file) = match part.split_once('=') {
                Some(("meta-data", file)) => (&mut seed.meta_data, file),
                Some(("network-config", file)) => (&mut seed.network_config, file),
                _ if index == 0 && part.is_empty() => continue,
                _ if index == 0 => (&mut seed.user_data, part),
                _ => {
                    return Err(format!(
                        "`{part}` is not an option of a seed: meta-data=FILE, network-config=FILE"
                    ));
                }
            };
            if file.is_empty() || place.is_some() {
                return Err(format!("`{part}`: each part of a seed is one file"));
            }
            *place = Some(file.into());
        }
        Ok(seed)
    }
}

/// Longest name of a host, in bytes (`HOST_NAME_MAX` of Linux).
const HOST_NAME_BYTES_MAX: usize = 64;

/// Whether a system can have this host name.
pub(crate) fn is_host_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let is_label = |label: &str| {
        !label.is_empty()
            && label.chars().all(is_plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= HOST_NAME_BYTES_MAX && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_file_with_further_ones() {
        let seed: SeedArg = "u.yaml,network-config=n.yaml".parse().unwrap();
        assert_eq!(
            (seed.user_data.as_deref(), &seed.meta_data),
            (Some(Path::new("u.yaml")), &None)
        );
        assert_eq!(seed.files().collect::<Vec<_>>(), [Path::new("u.yaml"), Path::new("n.yaml")]);
        for text in ["network-config=n.yaml,meta-data=m", ",meta-data=m,network-config=n.yaml"] {
            let seed: SeedArg = text.parse().unwrap();
            let files: Vec<_> = seed.files().collect();
            assert_eq!(files, [Path::new("m"), Path::new("n.yaml")], "{text}");
        }
        for (wrong, word) in [
            ("", "a seed needs a file"),
            ("meta-data=a,,network-config=b", "``"),
            ("u,vendor=x", "`vendor=x`"),
            ("u,ro", "`ro`"),
            ("u,meta-data=", "one file"),
            ("meta-data=", "one file"),
            ("u,meta-data=a,meta-data=b", "one file"),
        ] {
            assert!(wrong.parse::<SeedArg>().unwrap_err().contains(word), "{wrong}");
        }
    }

    #[test]
    fn a_host_name_has_labels_of_letters_digits_and_hyphens() {
        for name in ["a", "web-1", "web-1.example.com", &"a".repeat(63)] {
            assert!(is_host_name(name), "{name}");
        }
        for name in ["", "web_1", "-a", "a-", "a..b", "a.", ".a", "a b", &"a".repeat(65)] {
            assert!(!is_host_name(name), "{name}");
        }
    }
}
