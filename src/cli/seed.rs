//! `--seed USER-DATA[,meta-data=FILE][,network-config=FILE]`, and `seed` in a guest's file.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

/// Documents for cloud-init, as typed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SeedArg {
    /// What its user wants of the guest: cloud-config, a script, or another form that cloud-init
    /// knows.
    pub(crate) user_data: PathBuf,
    /// What is known of the guest; made up when absent.
    pub(crate) meta_data: Option<PathBuf>,
    /// How the guest's network is to be configured; cloud-init decides when absent.
    pub(crate) network_config: Option<PathBuf>,
}

impl SeedArg {
    /// Returns the files.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        let further = [&self.meta_data, &self.network_config].into_iter().flatten();
        [&self.user_data].into_iter().chain(further).map(PathBuf::as_path)
    }
}

impl FromStr for SeedArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let user_data = PathBuf::from(parts.next().unwrap_or_default());
        if user_data.as_os_str().is_empty() {
            return Err("a seed needs a file with user data".to_owned());
        }
        let mut seed = Self { user_data, meta_data: None, network_config: None };
        for option in parts {
            let (place, file) = match option.split_once('=') {
                Some(("meta-data", file)) => (&mut seed.meta_data, file),
                Some(("network-config", file)) => (&mut seed.network_config, file),
                _ => {
                    return Err(format!(
                        "`{option}` is not an option of a seed: meta-data=FILE, \
                         network-config=FILE"
                    ));
                }
            };
            *place = Some(file.into());
        }
        Ok(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_file_with_further_ones() {
        let seed: SeedArg = "u.yaml,network-config=n.yaml".parse().unwrap();
        assert_eq!((seed.user_data.to_str(), &seed.meta_data), (Some("u.yaml"), &None));
        assert_eq!(seed.files().collect::<Vec<_>>(), [Path::new("u.yaml"), Path::new("n.yaml")]);
        for (wrong, word) in [("", "user data"), ("u,vendor=x", "`vendor=x`"), ("u,ro", "`ro`")] {
            assert!(wrong.parse::<SeedArg>().unwrap_err().contains(word), "{wrong}");
        }
    }
}
