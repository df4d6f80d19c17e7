//! The node's file (`lighter node --config`): TOML with the options of `lighter node` as its keys,
//! see [`NodeArgs`].

use std::path::PathBuf;

use anyhow::{Context, Result};
use memopt::settings::{self, SettingsError};

use crate::cli::host::NodeArgs;

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Completes the options that were typed with those of the file that they name, if any.
///
/// # Errors
/// If the file cannot be read, or has an invalid key; the message then gives file, line and key.
pub(super) fn complete(typed: &NodeArgs) -> Result<NodeArgs> {
    let Some(path) = &typed.config else {
        return Ok(typed.clone());
    };
    let text = regular_file::read_text(path, FILE_BYTES_MAX)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let file = parse(&text, &path.display().to_string())?;
    Ok(typed.clone().or(file))
}

/// Parses a node's file; messages call it `file`.
fn parse(text: &str, file: &str) -> Result<NodeArgs, SettingsError> {
    settings::read_as(text, file, |args: &NodeArgs, root| {
        let Some((key, path)) = relative_path(args) else {
            return Ok(());
        };
        let place = root.iter().map(|(key, _)| key).find(|it| it.get_ref() == key);
        let at = place.map(|key| key.span()).unwrap_or_default();
        let what = format!("`{}` must be an absolute path", path.display());
        Err(settings::Fault { at, field: key.to_owned(), what })
    })
}

/// Returns a path that would depend on where the node is started, with its key.
fn relative_path(args: &NodeArgs) -> Option<(&'static str, &PathBuf)> {
    let auth = args.metrics_auth.iter().map(|path| ("metrics-auth", path));
    let folders = args.disk_dir.iter().map(|path| ("disk-dir", path));
    let devices = args.disk_device.iter().map(|path| ("disk-device", path));
    auth.chain(folders).chain(devices).find(|(_, path)| !path.is_absolute())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::cli::{Cli, Verb};

    /// The file that the package installs.
    const SHIPPED: &str = include_str!("../../packaging/node.toml");

    /// Returns what the command line `lighter node` with these arguments says.
    fn typed(arguments: &[&str]) -> NodeArgs {
        match Cli::try_parse_from([&["lighter", "node"], arguments].concat()).unwrap().verb {
            Verb::Node(args) => args,
            other => panic!("{other:?}"),
        }
    }

    /// The shipped file with its examples as keys.
    fn examples() -> String {
        let uncommented = |line: &str| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') => key.to_owned(),
            _ => line.to_owned(),
        };
        SHIPPED.lines().map(|line| uncommented(line) + "\n").collect()
    }

    #[test]
    fn a_file_says_what_the_options_of_the_same_names_say() {
        let text = "listen = \"[::]:1\"\nports = \"7-9\"\nmetrics = \"127.0.0.1:2\"\nmetrics-tls = true\n\
                    metrics-auth = \"/a\"\nreserve-memory = \"1G\"\nnet-map = [\"a=b\", \"c=d\"]\n\
                    net-allow = [\"b\", \"d\"]\ndisk-dir = [\"/x\", \"/y\"]\n\
                    disk-device = [\"/dev/z\"]\ndevice = [\"vfio=03:00.0\"]\nforeign-guests = \"act\"";
        let line = "--listen [::]:1 --ports 7-9 --metrics 127.0.0.1:2 --metrics-tls --metrics-auth /a \
                    --reserve-memory 1G --net-map a=b --net-map c=d --net-allow b,d --disk-dir /x \
                    --disk-dir /y --disk-device /dev/z --device vfio=03:00.0 --foreign-guests act";
        let line: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(parse(text, "node.toml").unwrap(), typed(&line));
        assert_eq!(typed(&[]).or(parse(text, "node.toml").unwrap()), typed(&line));
    }

    #[test]
    fn typed_options_replace_those_of_the_file() {
        let file = "listen = \"[::]:1\"\nmetrics = \"127.0.0.1:2\"\ndisk-dir = [\"/x\", \"/y\"]";
        let line = ["--listen", "[::]:3", "--disk-dir", "/z"];
        let args = typed(&line).or(parse(file, "node.toml").unwrap());
        assert_eq!(args, typed(&[&line[..], &["--metrics", "127.0.0.1:2"]].concat()));
        for (line, tls) in [(&["--metrics-tls=false"][..], false), (&["--metrics-tls"], true)] {
            for file in ["metrics-tls = true", "metrics-tls = false"] {
                let args = typed(line).or(parse(file, "node.toml").unwrap());
                assert_eq!(args.metrics_tls(), tls, "{line:?}, {file}");
            }
        }
    }

    #[test]
    fn without_file_and_options_the_defaults_hold() {
        let args = complete(&typed(&[])).unwrap();
        assert_eq!(args.listen(), "0.0.0.0:4950".parse().unwrap());
        assert_eq!(args.metrics(), "127.0.0.1:9450".parse().unwrap());
        assert_eq!(args.reserve_memory(), 256 << 20);
    }

    #[test]
    fn the_file_that_is_shipped_sets_nothing_and_shows_every_option() {
        assert_eq!(parse(SHIPPED, "node.toml").unwrap(), NodeArgs::default());
        let examples = examples();
        parse(&examples, "node.toml").unwrap();
        let command = Cli::command();
        let node = command.find_subcommand("node").unwrap();
        for option in node.get_arguments().filter_map(|option| option.get_long()) {
            let is_there = examples.lines().any(|line| line.starts_with(&format!("{option} = ")));
            assert_eq!(is_there, !["config", "help"].contains(&option), "{option}");
        }
    }

    /// Checks that `text` is refused with a message that starts with `start` and contains `word`.
    #[track_caller]
    fn refused(text: &str, start: &str, word: &str) {
        let said = parse(text, "node.toml").unwrap_err().to_string();
        let said = said.strip_prefix("node.toml:").expect("the file's name");
        assert!(said.starts_with(start) && said.contains(word), "{text:?}: {said}");
        assert!(!said.contains('\n'), "{said:?}");
    }

    #[test]
    fn invalid_keys_are_refused_with_line_and_key() {
        refused("\ndisk_dir = [\"/x\"]", "2: disk_dir: ", "`disk-dir`");
        refused("config = \"/x\"", "1: config: ", "unknown key `config`");
        refused("listen = \"4950\"", "1: listen: ", "socket address");
        refused("ports = \"9-7\"", "1: ports: ", "FIRST-LAST");
        refused("disk-dir = \"/x\"", "1: disk-dir: ", "a list in []");
        refused("metrics-tls = 1", "1: metrics-tls: ", "true or false");
        refused("reserve-memory = \"lots\"", "1: reserve-memory: ", "`lots`");
        refused("net-map = [\"br0\"]", "1: net-map: ", "FROM=TO");
        refused("net-allow = [\"a/b\"]", "1: net-allow", "a/b");
        refused("foreign-guests = \"no\"", "1: foreign-guests: ", "`watch`");
        refused(
            "metrics-tls = true\ndisk-dir = [\"/x\", \"y\"]",
            "2: disk-dir: ",
            "`y` must be an absolute path",
        );
        refused("metrics-auth = \"y\"", "1: metrics-auth: ", "absolute");
        refused("disk-device = [\"y\"]", "1: disk-device: ", "absolute");
        refused("device = [\"eth0\"]", "1: device", "`eth0`");
    }
}
