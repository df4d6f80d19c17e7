//! Parses the command line of a QEMU process: the guest's name, its RAM and what backs it, and its
//! monitor.
//!
//! QEMU's invocation manual (docs/system/invocation) describes the options; libvirt writes
//! `-object` as JSON.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::options::{Options, size};
use super::{CommandLine, Monitor, Mounts};
use crate::situation::Backing;

/// RAM without `-m`: QEMU's default.
const DEFAULT_MEMORY: u64 = 128 << 20;

/// A memory backend (`-object memory-backend-...`).
#[derive(Debug, Default)]
struct Backend {
    id: String,
    backing: Option<Backing>,
    merges: bool,
}

/// The properties of an object in JSON that matter here.
#[derive(Debug, Deserialize)]
struct JsonObject {
    #[serde(rename = "qom-type")]
    kind: String,
    id: String,
    share: Option<bool>,
    merge: Option<bool>,
    hugetlb: Option<bool>,
    #[serde(rename = "mem-path")]
    path: Option<PathBuf>,
}

/// The relevant fields of a device or of a NUMA node; libvirt writes devices as JSON.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Device {
    driver: String,
    memdev: Option<String>,
}

impl Device {
    fn parse(value: &str, options: &Options) -> Self {
        if value.starts_with('{') {
            return serde_json::from_str(value).unwrap_or_default();
        }
        let driver = options.get_or_first("driver").unwrap_or_default().to_owned();
        Self { driver, memdev: options.get("memdev").map(str::to_owned) }
    }
}

/// Parses the arguments of a QEMU process, without the program's name.
pub(super) fn parse(arguments: &[String], mounts: &Mounts) -> CommandLine {
    let mut line = CommandLine::new(
        DEFAULT_MEMORY,
        "it was started without a QMP monitor on a Unix socket: -qmp unix:PATH,server=on,wait=off",
    );
    let mut backends = Vec::new();
    let mut used = Vec::new();
    let mut merges = true;
    let mut path_backing = None;
    for (option, value) in pairs(arguments) {
        let options = Options::parse(value);
        match option {
            "name" => line.name = options.get_or_first("guest").map(str::to_owned),
            "m" => {
                let bytes = options.get_or_first("size").and_then(|text| size(text, 1 << 20));
                line.memory_bytes = bytes.unwrap_or(line.memory_bytes);
            }
            "object" => backends.extend(backend(value, &options, mounts)),
            "machine" | "M" => {
                merges = options.is_on("mem-merge", merges);
                used.extend(options.get("memory-backend").map(str::to_owned));
            }
            "numa" | "device" => {
                let device = Device::parse(value, &options);
                used.extend(device.memdev);
                line.has_passthrough |= option == "device" && device.driver.starts_with("vfio-");
            }
            "mem-path" => path_backing = Some(mounts.backing_of_file(Path::new(value), false)),
            "incoming" => line.is_incoming = true,
            _ => {}
        }
    }
    let of_use: Vec<&Backend> =
        backends.iter().filter(|backend| used.contains(&backend.id)).collect();
    let strictest = of_use.iter().filter_map(|backend| backend.backing).max_by_key(strictness);
    line.backing = strictest.or(path_backing).unwrap_or(Backing::Anonymous);
    let is_private = matches!(line.backing, Backing::Anonymous | Backing::Template);
    line.is_mergeable = is_private && merges && of_use.iter().all(|backend| backend.merges);
    if let Some(monitor) = monitor(arguments) {
        line.monitor = monitor;
    }
    line
}

/// Splits arguments into options and values: `-m 2G` or `--m 2G`. Options without a value (`-S`)
/// are skipped; none of them matters here.
fn pairs(arguments: &[String]) -> impl Iterator<Item = (&str, &str)> {
    arguments.windows(2).filter_map(|pair| {
        let option = pair[0].strip_prefix("--").or_else(|| pair[0].strip_prefix('-'))?;
        (!pair[1].starts_with('-')).then_some((option, pair[1].as_str()))
    })
}

/// Ranks backings by how little can be done with them: a guest with several kinds of memory is
/// treated as if all of it were the most restricted kind.
const fn strictness(backing: &Backing) -> u8 {
    match backing {
        Backing::Anonymous => 0,
        Backing::Template => 1,
        Backing::Shared => 2,
        Backing::HugePool => 3,
    }
}

fn backend(value: &str, options: &Options, mounts: &Mounts) -> Option<Backend> {
    let object = if value.starts_with('{') {
        serde_json::from_str(value).ok()?
    } else {
        let given = |key: &str| options.get(key).is_some().then(|| options.is_on(key, false));
        JsonObject {
            kind: options.get_or_first("qom-type")?.to_owned(),
            id: options.get("id")?.to_owned(),
            share: given("share"),
            merge: given("merge"),
            hugetlb: given("hugetlb"),
            path: options.get("mem-path").map(PathBuf::from),
        }
    };
    let backing = match object.kind.as_str() {
        "memory-backend-ram" if object.share == Some(true) => Backing::Shared,
        "memory-backend-ram" => Backing::Anonymous,
        // A memfd is shared by default.
        "memory-backend-memfd" if object.hugetlb == Some(true) => Backing::HugePool,
        "memory-backend-memfd" if object.share == Some(false) => Backing::Template,
        "memory-backend-memfd" | "memory-backend-shm" => Backing::Shared,
        "memory-backend-file" => {
            mounts.backing_of_file(object.path.as_deref()?, object.share == Some(true))
        }
        _ => return None,
    };
    Some(Backend { id: object.id, backing: Some(backing), merges: object.merge != Some(false) })
}

/// Returns where a QMP client can connect. A monitor that should be free goes before one that
/// libvirt holds.
fn monitor(arguments: &[String]) -> Option<Monitor> {
    let monitors = || {
        pairs(arguments).filter_map(|(option, value)| match option {
            "qmp" | "qmp-pretty" => direct(value),
            "mon" => {
                let options = Options::parse(value);
                let is_qmp = options.get("mode") == Some("control");
                is_qmp.then(|| of_chardev(arguments, options.get_or_first("chardev")?)).flatten()
            }
            _ => None,
        })
    };
    monitors().find(|monitor| matches!(monitor, Monitor::Qmp(_))).or_else(|| monitors().next())
}

/// Parses `-qmp unix:/path,server=on`; a bare word names a character device.
fn direct(value: &str) -> Option<Monitor> {
    let options = Options::parse(value);
    let path = options.first()?.strip_prefix("unix:")?;
    is_server(&options).then(|| Monitor::Qmp(path.into()))
}

/// Finds `-chardev socket,id=ID,path=/path,server=on`, or libvirt's with `fd=N`.
fn of_chardev(arguments: &[String], id: &str) -> Option<Monitor> {
    let mut devices = pairs(arguments).filter(|(option, _)| *option == "chardev");
    let options = devices.find_map(|(_, value)| {
        let options = Options::parse(value);
        (options.get("id") == Some(id)).then_some(options)
    })?;
    if options.get_or_first("backend") != Some("socket") || !is_server(&options) {
        return None;
    }
    match options.get("path") {
        Some(path) if id != "charmonitor" && !path.contains("/libvirt/") => {
            Some(Monitor::Qmp(path.into()))
        }
        // libvirt opens the socket itself, and uses these names.
        _ => Some(Monitor::Libvirt),
    }
}

fn is_server(options: &Options) -> bool {
    options.is_on("server", false)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(text: &str) -> CommandLine {
        let arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        parse(&arguments, &Mounts::of("hugetlbfs /dev/hugepages hugetlbfs rw 0 0\n"))
    }

    #[test]
    fn a_guest_of_a_hand_written_script() {
        let line = line(
            "-name web-1,process=x -m 2G -S -machine q35,accel=kvm -device virtio-balloon-pci \
             -qmp unix:/run/web-1.qmp,server=on,wait=off",
        );
        assert_eq!((line.name.as_deref(), line.memory_bytes), (Some("web-1"), 2 << 30));
        assert_eq!((line.backing, line.is_mergeable), (Backing::Anonymous, true));
        assert_eq!(line.monitor, Monitor::Qmp("/run/web-1.qmp".into()));
        assert!(!line.has_passthrough && !line.is_incoming);
    }

    #[test]
    fn a_guest_of_libvirt_has_its_monitor_taken_unless_it_has_a_second_one() {
        let libvirt = "-name guest=db,debug-threads=on -m size=4194304k \
             -object {\"qom-type\":\"memory-backend-ram\",\"id\":\"pc.ram\",\"size\":4294967296} \
             -machine pc-q35-7.2,usb=off,mem-merge=off,memory-backend=pc.ram \
             -chardev socket,id=charmonitor,fd=26,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control";
        let guest = line(libvirt);
        assert_eq!((guest.name.as_deref(), guest.memory_bytes), (Some("db"), 4 << 30));
        assert_eq!((guest.is_mergeable, guest.monitor), (false, Monitor::Libvirt));
        let path = libvirt.replace("fd=26", "path=/var/lib/libvirt/qemu/domain-1-db/monitor.sock");
        assert_eq!(line(&path).monitor, Monitor::Libvirt);

        let second = format!("{libvirt} -qmp unix:/run/db.qmp,server,nowait");
        assert_eq!(line(&second).monitor, Monitor::Qmp("/run/db.qmp".into()));
    }

    #[test]
    fn the_backing_of_ram_is_recognized() {
        for (text, backing, is_mergeable) in [
            ("-m 1G", Backing::Anonymous, true),
            ("-m 1G -mem-path /dev/hugepages", Backing::HugePool, false),
            ("-m 1G -mem-path /var/tmp", Backing::Template, true),
            (
                "-object memory-backend-memfd,id=m,size=1G -machine memory-backend=m",
                Backing::Shared,
                false,
            ),
            (
                "-object memory-backend-memfd,id=m,hugetlb=on -numa node,memdev=m",
                Backing::HugePool,
                false,
            ),
            (
                "-object memory-backend-ram,id=m,merge=off -machine memory-backend=m",
                Backing::Anonymous,
                false,
            ),
            (
                "-object memory-backend-file,id=m,mem-path=/dev/hugepages/a,share=on -machine memory-backend=m",
                Backing::HugePool,
                false,
            ),
            (
                "-object memory-backend-file,id=m,mem-path=/x,share=on -machine memory-backend=m",
                Backing::Shared,
                false,
            ),
            // No guest memory uses it.
            ("-object memory-backend-memfd,id=m,size=1G", Backing::Anonymous, true),
        ] {
            let found = line(text);
            assert_eq!((found.backing, found.is_mergeable), (backing, is_mergeable), "{text}");
        }
    }

    #[test]
    fn unusable_monitors_are_ignored() {
        for text in [
            "-qmp tcp:127.0.0.1:4444,server=on",
            "-qmp unix:/run/client",
            "-monitor unix:/run/hmp,server=on",
            "-chardev socket,id=c,path=/run/c,server=on -mon chardev=c,mode=readline",
            "-mon chardev=missing,mode=control",
            "",
        ] {
            assert!(matches!(line(text).monitor, Monitor::None(_)), "{text}");
        }
        let own = "-chardev socket,id=c,path=/run/c,server=on -mon chardev=c,mode=control";
        assert_eq!(line(own).monitor, Monitor::Qmp("/run/c".into()));
        assert!(line("-device vfio-pci,host=01:00.0 -incoming defer").has_passthrough);
        assert!(line(r#"-device {"driver":"vfio-pci","host":"01:00.0","id":"h"}"#).has_passthrough);
        assert!(
            !line(r#"-device {"driver":"virtio-net-pci"} -device {"driver":7}"#).has_passthrough
        );
        let in_json =
            r#"-object memory-backend-memfd,id=m -device {"driver":"pc-dimm","memdev":"m"}"#;
        assert_eq!(line(in_json).backing, Backing::Shared);
        assert!(line("-incoming defer").is_incoming);
    }

    proptest! {
        #[test]
        fn any_arguments_are_read(arguments in proptest::collection::vec(
            "(-[a-z]{1,10}|-object|-mon|-chardev|-m|\\{.{0,30}|[a-z=,./]{0,40}|.{0,20})", 0..40,
        )) {
            let _ = parse(&arguments, &Mounts::default());
        }
    }
}
