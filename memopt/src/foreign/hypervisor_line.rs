//! Parses the command line of a Cloud Hypervisor process. For a guest created through the API it
//! has only the API's socket; `vm.info` has the rest.

use std::path::Path;

use super::options::{Options, size};
use super::{CommandLine, Monitor};
use crate::situation::Backing;

/// Parses the arguments of a process, without the program's name.
pub(super) fn parse(arguments: &[String]) -> CommandLine {
    let mut line = CommandLine::new(0, "it was started without an API socket: --api-socket PATH");
    for (option, value) in pairs(arguments) {
        let options = Options::parse(value);
        match option {
            "memory" => {
                line.memory_bytes = options.get("size").and_then(|text| size(text, 1)).unwrap_or(0);
                line.backing = if options.is_on("hugepages", false) {
                    Backing::HugePool
                } else if options.is_on("shared", false) {
                    Backing::Shared
                } else {
                    Backing::Anonymous
                };
                line.is_mergeable =
                    line.backing == Backing::Anonymous && options.is_on("mergeable", false);
            }
            "device" => line.has_passthrough = true,
            "api-socket" => {
                let Some(path) = options.get_or_first("path") else { continue };
                // Cloud Hypervisor's guests have no names, so the socket's name is used.
                let stem = Path::new(path).file_stem();
                line.name = stem.map(|stem| stem.to_string_lossy().into_owned());
                line.monitor = Monitor::CloudHypervisor(path.into());
            }
            _ => {}
        }
    }
    line
}

/// Splits arguments into options and values: `--memory size=1G` or `--memory=size=1G`.
fn pairs(arguments: &[String]) -> impl Iterator<Item = (&str, &str)> {
    arguments.iter().enumerate().filter_map(|(index, argument)| {
        let option = argument.strip_prefix("--")?;
        let following = arguments.get(index + 1).filter(|next| !next.starts_with("--"));
        option.split_once('=').or_else(|| Some((option, following?.as_str())))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(text: &str) -> CommandLine {
        parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_guest_on_the_command_line() {
        let guest =
            line("--api-socket /run/ch/web.sock --memory size=1024M,mergeable=on --cpus boot=2");
        assert_eq!((guest.name.as_deref(), guest.memory_bytes), (Some("web"), 1 << 30));
        assert!(guest.is_mergeable && !guest.has_passthrough);
        assert_eq!(guest.monitor, Monitor::CloudHypervisor("/run/ch/web.sock".into()));
        let path = line("--api-socket=path=/run/a.sock");
        assert_eq!(path.monitor, Monitor::CloudHypervisor("/run/a.sock".into()));
    }

    #[test]
    fn shared_memory_is_never_merged_whatever_it_says() {
        let shared = line("--memory size=1G,mergeable=on,shared=on --device path=/sys/x");
        assert_eq!((shared.backing, shared.is_mergeable), (Backing::Shared, false));
        assert!(shared.has_passthrough);
        assert!(matches!(shared.monitor, Monitor::None(_)));
        let pool = line("--memory size=1G,hugepages=on,shared=on");
        assert_eq!(pool.backing, Backing::HugePool);
    }

    proptest! {
        #[test]
        fn any_arguments_are_read(arguments in proptest::collection::vec("(--memory|--api-socket|-?-?[a-z=,]{0,20}|.{0,20})", 0..20)) {
            let _ = parse(&arguments);
        }
    }
}
