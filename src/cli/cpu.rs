//! `--cpu`: a model by its name, or a file that changes one.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use vmm_core::CpuModel;

/// The longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// What a guest sees of its host's processor, as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CpuArg {
    /// A model that has a name.
    Model(CpuModel),
    /// A file that changes one.
    File(PathBuf),
}

impl FromStr for CpuArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if Path::new(text).extension().is_some_and(|ending| ending == "toml") {
            return Ok(Self::File(text.into()));
        }
        CpuModel::named(text).map(Self::Model).ok_or_else(|| {
            let names: Vec<String> = CpuModel::all().map(|model| model.name().to_owned()).collect();
            format!(
                "`{text}` is not a CPU model: give {}, or a file that ends in .toml",
                names.join(", ")
            )
        })
    }
}

/// A file that changes a model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile {
    /// The model that is changed.
    base: String,
    /// Features that it has besides, by their names in /proc/cpuinfo.
    #[serde(default)]
    add: Vec<String>,
    /// Features that it does not have.
    #[serde(default)]
    remove: Vec<String>,
}

impl CpuArg {
    /// The model.
    ///
    /// # Errors
    /// The file cannot be read, or makes no model.
    pub(crate) fn model(&self) -> Result<CpuModel> {
        match self {
            Self::Model(model) => Ok(model.clone()),
            Self::File(path) => {
                read(path).with_context(|| format!("cannot use the CPU model {}", path.display()))
            }
        }
    }
}

fn read(path: &Path) -> Result<CpuModel> {
    let text = regular_file::read_text(path, FILE_BYTES_MAX)?;
    let name = path.display().to_string();
    let file: ModelFile = memopt::settings::read_as(&text, &name, |_, _| Ok(()))?;
    let base = CpuModel::named(&file.base).ok_or_else(|| {
        anyhow!("`{}` is not a CPU model to begin with; see `lighter cpu-models`", file.base)
    })?;
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    Ok(base.derive(name, &file.add, &file.remove)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_a_name_or_a_file() {
        let model: CpuArg = "x86-64-v2".parse().unwrap();
        assert_eq!(model.model().unwrap().name(), "x86-64-v2");
        assert_eq!("/x/a.toml".parse::<CpuArg>(), Ok(CpuArg::File("/x/a.toml".into())));
        let error = "epyc".parse::<CpuArg>().unwrap_err();
        assert!(error.contains("`epyc`") && error.contains("host, x86-64-v1"), "{error}");
    }

    #[test]
    fn a_file_changes_a_model_and_says_what_is_wrong_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fleet.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            CpuArg::File(path.clone()).model().map_err(|error| format!("{error:#}"))
        };
        let model = read("base = \"x86-64-v3\"\nadd = [\"sha_ni\"]\nremove = [\"avx2\"]").unwrap();
        assert_eq!(model.name(), "fleet");
        for (text, word) in [
            ("base = \"v9\"", "`v9`"),
            ("add = []", "base"),
            ("base = \"host\"\nadd = [\"warp\"]", "`warp`"),
            ("base = \"host\"\nmask = 1", "fleet.toml:2: mask: unknown key"),
            ("base", "fleet.toml:1: "),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains("fleet.toml") && error.contains(word), "{error}");
        }
    }
}
