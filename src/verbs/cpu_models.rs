//! `lighter cpu-models`: the CPU models that this host can offer to guests.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::cli::Output;
use crate::cli::host::CpuModelsArgs;
use crate::exit::Exit;
use crate::output;
use crate::table::Table;

/// A CPU model, as printed.
#[derive(Debug, Serialize)]
struct Listed {
    /// Name of the model.
    name: String,
    /// Description for users.
    about: String,
    /// Features that it needs and this host does not have, by their names in /proc/cpuinfo.
    missing: Vec<String>,
}

/// Lists the models.
///
/// # Errors
/// If `/dev/kvm` does not answer.
pub(crate) fn run(args: &CpuModelsArgs) -> Result<Exit> {
    let models = vmm_core::cpu_models().context("cannot tell what this host's KVM can show")?;
    let models: Vec<Listed> = models
        .into_iter()
        .map(|(model, missing)| Listed {
            name: model.name().to_owned(),
            about: model.about().to_owned(),
            missing,
        })
        .collect();
    match args.json.output() {
        Output::Json => output::print_json(&models)?,
        Output::Text => output::print(table(&models, output::columns()))?,
    }
    Ok(Exit::Done)
}

fn table(models: &[Listed], screen: Option<usize>) -> String {
    let mut table = Table::new(&["NAME", "THIS HOST", "ABOUT"]);
    for model in models {
        let standing = match model.missing.as_slice() {
            [] => "supported".to_owned(),
            [only] => format!("unsupported: {only}"),
            [first, rest @ ..] => format!("unsupported: {first}, {} more", rest.len()),
        };
        table.row([model.name.clone(), standing, model.about.clone()]);
    }
    table.render_within(screen, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_features_are_listed() {
        let listed = |name: &str, missing: &[&str]| Listed {
            name: name.to_owned(),
            about: "x".to_owned(),
            missing: missing.iter().map(|name| (*name).to_owned()).collect(),
        };
        let models = [listed("a", &[]), listed("b", &["avx"]), listed("c", &["avx", "bmi1"])];
        assert_eq!(
            table(&models, None),
            "NAME  THIS HOST                 ABOUT\n\
             a     supported                 x\n\
             b     unsupported: avx          x\n\
             c     unsupported: avx, 1 more  x\n"
        );
    }
}
