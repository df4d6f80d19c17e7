//! A guest's definition file: TOML with the options of `lighter run` as its keys, see
//! [`GuestSpec`].

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use memopt::settings::{self, SettingsError};
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use uuid::Uuid;
use vmm_core::MachineKind;
use vmm_core::virtio::net::MacAddress;

use crate::cli::fault::{Fault, Place};
use crate::cli::spec::GuestSpec;
use crate::names::GuestName;

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A guest's definition file that was parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    /// The text as it was written.
    pub(crate) text: String,
    /// The guest that the text describes.
    pub(crate) spec: GuestSpec,
}

impl Document {
    /// Reads and parses the file at `path`.
    ///
    /// # Errors
    /// If the file cannot be read, or describes an invalid guest; the message then gives file, line
    /// and key.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = regular_file::read_text(path, FILE_BYTES_MAX)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let spec = parse(&text, &path.display().to_string())?;
        Ok(Self { text, spec })
    }

    /// Returns the text, completed with what a defined guest must keep: a UUID, and an address for
    /// each network device. Those of `before` are used where it has them.
    ///
    /// # Errors
    /// If it describes another guest than `before`, or this host has no entropy to choose an
    /// address.
    pub(crate) fn text_to_keep(&self, before: Option<&Kept>) -> Result<String> {
        let root = DeTable::parse(&self.text).map_err(|error| anyhow!("{error}"))?;
        let mut missing = Vec::from_iter(self.missing_identity(root.get_ref(), before)?);
        missing.extend(self.missing_machine(root.get_ref(), before));
        missing.extend(self.missing_addresses(root.get_ref(), before)?);
        // From the end backwards, so that an insertion does not move the places of the others.
        missing.sort_by_key(|(place, _)| std::cmp::Reverse(*place));
        let mut text = self.text.clone();
        for (place, key) in missing {
            text.insert_str(place, &key);
        }
        if text.len() as u64 > FILE_BYTES_MAX {
            bail!("with its identity and addresses it is longer than {FILE_BYTES_MAX} bytes");
        }
        let read = parse(&text, "it");
        read.context("with its identity and addresses it cannot be read")?;
        Ok(text)
    }

    /// Returns what the guest keeps if it is `running`, as far as that is known.
    ///
    /// # Errors
    /// That of `running`, if the file does not say which guest it is.
    pub(super) fn kept_of(&self, running: Result<Option<Kept>>) -> Result<Option<Kept>> {
        let wanted = self.spec.uuid;
        let kept = match running {
            Err(_) if wanted.is_some() => None,
            running => running?.filter(|kept| wanted.is_none() || wanted == kept.uuid),
        };
        Ok(kept.map(|kept| Kept {
            // After a device has been detached, the others have the places of others.
            addresses: match kept.addresses.len() == self.spec.net.len() {
                true => kept.addresses,
                false => Vec::new(),
            },
            ..kept
        }))
    }

    fn missing_identity(
        &self,
        root: &DeTable<'_>,
        before: Option<&Kept>,
    ) -> Result<Option<(usize, String)>> {
        let before = before.and_then(|kept| kept.uuid);
        match (self.spec.uuid, before) {
            (Some(new), Some(old)) if new != old => {
                bail!("it is defined with the UUID {old}, not {new}: that is another guest")
            }
            (Some(_), _) => Ok(None),
            (None, _) => {
                let uuid = before.unwrap_or_else(Uuid::new_v4);
                Ok(Some((place_of_name(root), format!("uuid = \"{uuid}\"\n"))))
            }
        }
    }

    /// The machine is kept too: another release may have another default, by which the guest would
    /// find its network devices under other names.
    fn missing_machine(
        &self,
        root: &DeTable<'_>,
        before: Option<&Kept>,
    ) -> Option<(usize, String)> {
        if !self.spec.has_system() || self.spec.machine.is_some() {
            return None;
        }
        let before = before.and_then(|kept| kept.machine).filter(|_| self.spec.kernel.is_some());
        let machine = before.unwrap_or_else(|| self.spec.machine());
        Some((place_of_name(root), format!("machine = \"{machine}\"\n")))
    }

    fn missing_addresses(
        &self,
        root: &DeTable<'_>,
        before: Option<&Kept>,
    ) -> Result<Vec<(usize, String)>> {
        let mut missing = Vec::new();
        for (index, net) in self.spec.net.iter().enumerate() {
            if net.mac.is_some() {
                continue;
            }
            let known = before.and_then(|kept| *kept.addresses.get(index)?);
            let mac = match known {
                Some(mac) => mac,
                None => MacAddress::random().context("cannot choose an address")?,
            };
            if let Some((place, is_inline)) = self.beginning_of(root, index) {
                let end = if is_inline { ", " } else { "\n" };
                missing.push((place, format!("mac = \"{mac}\"{end}")));
            }
        }
        Ok(missing)
    }

    /// Returns where the keys of a network begin, and whether it is an inline table.
    fn beginning_of(&self, root: &DeTable<'_>, index: usize) -> Option<(usize, bool)> {
        let table = item(root, "net", index)?;
        let keys = table.get_ref().as_table()?.iter();
        let place = keys.map(|(key, _)| key.span().start).min()?;
        Some((place, self.text[table.span()].starts_with('{')))
    }

    /// Returns the name in the file.
    ///
    /// # Errors
    /// If the file has no name.
    pub(crate) fn name(&self, path: &Path) -> Result<&GuestName> {
        let missing = || anyhow!("{}: the key `name` is missing", path.display());
        self.spec.name.as_ref().ok_or_else(missing)
    }
}

/// What a guest keeps when it is defined again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// The guest's identity.
    pub(crate) uuid: Option<Uuid>,
    /// The address of each network device that has one.
    pub(crate) addresses: Vec<Option<MacAddress>>,
    /// How it reaches its devices.
    pub(crate) machine: Option<MachineKind>,
}

impl Kept {
    /// Returns what the guest of this specification keeps.
    pub(crate) fn of(spec: &GuestSpec) -> Self {
        let addresses = spec.net.iter().map(|net| net.mac).collect();
        Self { uuid: spec.uuid, addresses, machine: spec.machine }
    }

    /// Reads what the guest `name` keeps from its definition file at `path`, whatever else is wrong
    /// with that file; none if the file is not valid TOML, is for another guest, or its `uuid` is
    /// not one.
    pub(crate) fn read(path: &Path, name: &GuestName) -> Option<Self> {
        Self::parse(&regular_file::read_text(path, FILE_BYTES_MAX).ok()?, name)
    }

    fn parse(text: &str, name: &GuestName) -> Option<Self> {
        let root = DeTable::parse(text).ok()?;
        let root = root.get_ref();
        if value(root, "name")?.as_str()? != name.as_str() {
            return None;
        }
        let uuid = match value(root, "uuid") {
            Some(uuid) => Some(uuid.as_str()?.parse().ok()?),
            None => None,
        };
        let nets = value(root, "net").and_then(DeValue::as_array);
        let nets = nets.into_iter().flat_map(|nets| nets.iter());
        let address = |net: &Spanned<DeValue<'_>>| {
            value(net.get_ref().as_table()?, "mac")?.as_str()?.parse().ok()
        };
        let machine = value(root, "machine").and_then(|kind| kind.as_str()?.parse().ok());
        Some(Self { uuid, addresses: nets.map(address).collect(), machine })
    }
}

/// Returns where a line can be added to the file: before the guest's name, which is no part of a
/// table.
fn place_of_name(root: &DeTable<'_>) -> usize {
    let place = root.iter().find(|(key, _)| key.get_ref() == "name");
    place.map_or(0, |(key, _)| key.span().start)
}

/// Returns the value of a key in `table`.
fn value<'a, 'i>(table: &'a DeTable<'i>, key: &str) -> Option<&'a DeValue<'i>> {
    table.iter().find(|(it, _)| it.get_ref() == key).map(|(_, value)| value.get_ref())
}

/// Parses a definition file; messages call it `file`.
fn parse(text: &str, file: &str) -> Result<GuestSpec, SettingsError> {
    settings::read_as(text, file, |spec: &GuestSpec, root| {
        let fault = spec.check().and_then(|()| spec.check_paths()).err();
        fault.map_or(Ok(()), |Fault { place, what }| {
            let at = span_of(root, place).unwrap_or_default();
            Err(settings::Fault { at, field: place.to_string(), what })
        })
    })
}

/// Returns where the key at `place` is written.
fn span_of(root: &DeTable<'_>, place: Place) -> Option<Range<usize>> {
    let table = match place.item {
        None => root,
        Some((tables, index)) => item(root, tables, index)?.get_ref().as_table()?,
    };
    let key = table.iter().map(|(key, _)| key).find(|key| key.get_ref() == place.key)?;
    Some(key.span())
}

/// Returns table number `index` of the tables of this name.
fn item<'a, 'i>(
    root: &'a DeTable<'i>,
    tables: &str,
    index: usize,
) -> Option<&'a Spanned<DeValue<'i>>> {
    let all = root.iter().find(|(key, _)| key.get_ref() == tables)?.1;
    all.get_ref().as_array()?.get(index)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Verb};

    const FULL: &str = r#"
name = "db"
uuid = "8f0c5a52-0f7b-4a37-9b0c-5c1d2e3f4a5b"
memory = "1G"
cpus = 2
kernel = "/boot/vmlinuz"
initrd = "/boot/initrd"
cmdline = "console=ttyS0 root=/dev/vda"
acpi = "off"
machine = "pci"
on-reboot = "stop"
rng = true
balloon = "off"
vsock = 3
cpu = "x86-64-v2"
nested = "on"
hugepages = "2M"
prealloc = true
numa-policy = "interleave:0-1"
dirty-log = "ring:2048"
labels = { team = "shop", "x/y" = "" }

[[disk]]
path = "/d/a.raw"
serial = "db-1"

[[disk]]
path = "/d/b.raw"
read-only = true

[[net]]
bridge = "br0"
mac = "52:54:00:00:00:01"

[[net]]
tap = "tap-db"
"#;

    fn read(text: &str) -> Result<GuestSpec, SettingsError> {
        parse(text, "web.toml")
    }

    /// Returns the guest that the command line `lighter run` with these arguments describes.
    fn typed(arguments: &[&str]) -> GuestSpec {
        let line = [&["lighter", "run"], arguments].concat();
        match Cli::try_parse_from(line).unwrap().verb {
            Verb::Run(args) => args.spec,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_says_what_the_options_of_the_same_names_say() {
        let arguments = "--name db --uuid 8f0c5a52-0f7b-4a37-9b0c-5c1d2e3f4a5b \
                         --memory 1G --cpus 2 --kernel /boot/vmlinuz --initrd /boot/initrd --acpi off --machine pci \
                         --on-reboot stop --rng --balloon off --vsock 3 --cpu x86-64-v2 --nested on --hugepages 2M \
                         --prealloc --numa-policy interleave:0-1 --dirty-log ring:2048 \
                         --label team=shop --label x/y= --disk /d/a.raw,serial=db-1 \
                         --disk /d/b.raw,ro --net bridge=br0,mac=52:54:00:00:00:01 --net tap=tap-db --cmdline";
        let arguments: Vec<&str> =
            arguments.split_whitespace().chain(["console=ttyS0 root=/dev/vda"]).collect();
        assert_eq!(read(FULL).unwrap(), typed(&arguments));

        let workload = "dirty-rate = 7\nworking-set = \"8M\"\nwrite-order = \"hot\"\npattern = \"text\"\n\
                        zero-share = 20\nimage-share = 40\nrun-length = \"4M\"\n\
                        shuffle = \"64K\"\nread-rate = 9";
        let arguments = "--dirty-rate 7 --working-set 8M --write-order hot --pattern text --zero-share 20 \
                         --image-share 40 --run-length 4M --shuffle 64K --read-rate 9";
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        assert_eq!(read(workload).unwrap(), typed(&arguments));
        let clone = "template = \"/t\"\nmerge-domain = \"shop\"\nhugepages = \"off\"\ndisk = [{ path = \"/d\" }]";
        let arguments = "--template /t --merge-domain shop --hugepages off --disk /d";
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        assert_eq!(read(clone).unwrap(), typed(&arguments));
        assert_eq!(read("").unwrap(), typed(&[]), "the same holds when nothing is said");
    }

    /// Checks that `text` is refused with a message that starts with `start` and contains `word`.
    #[track_caller]
    fn refused(text: &str, start: &str, word: &str) {
        let said = read(text).unwrap_err().to_string();
        let said = said.strip_prefix("web.toml:").expect("the file's name");
        assert!(said.starts_with(start) && said.contains(word), "{text:?}: {said}");
        assert!(!said.contains('\n'), "{said:?}");
    }

    #[test]
    fn invalid_guests_are_refused_with_line_and_key() {
        refused("cpus = 1\nmemry = \"1G\"", "2: memry: ", "unknown key `memry`");
        refused("\n\nmemory = 1024", "3: memory: ", "expected text in quotes");
        refused("memory = \"512\"", "1: memory: ", "did you mean 512M?");
        refused("memory = \"lots\"", "1: memory: ", "`lots`");
        refused("memory = \"1M\"", "1: memory: ", "not possible");
        let decimal = "512MB is decimal (512000000 bytes): write 512M";
        refused("memory = \"512MB\"", "1: memory: ", decimal);
        // Possible with small pages, but not with these.
        refused("memory = \"4096MB\"\nhugepages = \"2M\"", "1: memory: ", "write 4096M");
        refused("cpus = 256", "1: cpus: ", "`256` is out of range");
        refused("cpus = 0", "1: cpus: ", "1 to 255");
        refused("cpus = \"2\"", "1: cpus: ", "expected a whole number");
        refused("kernel = \"/k\"\nvsock = \"3\"", "2: vsock: ", "expected a whole number");
        refused("dirty-rate = \"7\"", "1: dirty-rate: ", "expected a whole number");
        refused("cpus = -1", "1: cpus: ", "`-1` is out of range");
        refused("kernel = \"/k\"\nvsock = 2", "2: vsock: ", "3 to 4294967294");
        refused("hugepages = \"4M\"", "1: hugepages: ", "`4M`");
        refused("numa-policy = \"bind:99\"", "1: numa-policy: ", "`99`");
        refused("merge-domain = \"a b\"", "1: merge-domain: ", "letters");
        refused("dirty-log = \"ring:3\"", "1: dirty-log: ", "power of two");
        refused("cpu = \"486\"", "1: cpu: ", "`486`");
        refused("cpu = \"fleet.toml\"", "1: cpu: ", "must be an absolute path");
        refused("template = \"t\"", "1: template: ", "must be an absolute path");
        refused("name = \"../x\"", "1: name: ", "a guest's name is");
        refused("image-share = 101", "1: image-share: ", "0 to 100");
        refused("on-reboot = \"maybe\"", "1: on-reboot: ", "`restart`");
        refused("on_reboot = \"stop\"", "1: on_reboot: ", "`on-reboot`");
        refused("labels = { \"a b\" = \"c\" }", "1: labels", "letters");
        refused("kernel = \"/k\"\ncmdline = \"a\\u0000b\"", "2: cmdline: ", "control");
        refused("kernel = \"/k\"\ncmdline = \"a\\nb\"", "2: cmdline: ", "control");
        refused("kernel = \"/\\u0000k\"", "1: kernel: ", "`/\\0k` must be an absolute path");
        refused("labels = { a = 1 }", "1: labels.a: ", "text in quotes");
        refused("kernel = \"/k\"\nrng = \"yes\"", "2: rng: ", "true or false");
        let many: String = (0..65).map(|number| format!("l{number} = \"\"\n")).collect();
        refused(&format!("[labels]\n{many}"), "1: labels: ", "at most 64");
    }

    #[test]
    fn conflicting_keys_are_refused_with_line_and_key() {
        for line in [
            "initrd = \"/i\"",
            "cmdline = \"x\"",
            "acpi = \"on\"",
            "nested = \"on\"",
            "rng = true",
            "vsock = 3",
        ] {
            let key = line.split(' ').next().unwrap();
            refused(&format!("cpus = 1\n{line}"), &format!("2: {key}: "), "`kernel`");
        }
        refused("machine = \"mmio\"\n[[disk]]\npath = \"/d\"", "1: machine: ", "`firmware`");
        for line in [
            "memory = \"1G\"",
            "cpus = 1",
            "kernel = \"/k\"",
            "cpu = \"host\"",
            "prealloc = true",
            "hostname = \"h\"",
            "password-file = \"/p\"",
            "ssh-key = [\"/k\"]",
            "device = [\"vfio=03:00.0\"]",
            "vsock = 3",
        ] {
            let key = line.split(' ').next().unwrap();
            refused(&format!("template = \"/t\"\n{line}"), &format!("2: {key}: "), "`template`");
        }
        refused("cpus = 9", "1: cpus: ", "workload has 1 to 8 vCPUs, not 9: more need a `disk`");
        refused("hugepages = \"1G\"", "1: hugepages: ", "huge pages of 1 GiB");
        refused("hugepages = \"2M\"\nmerge-domain = \"a\"", "1: hugepages: ", "cannot be merged");
        refused("zero-share = 40\nimage-share = 61", "2: image-share: ", "100 percent");
        refused("pattern = \"zero\"\nzero-share = 1", "2: zero-share: ", "nothing but zeros");
        refused("run-length = \"5000\"", "1: run-length: ", "multiple of 4K");
        refused("shuffle = \"5000\"", "1: shuffle: ", "multiple of 4K");
        for line in [
            "dirty-rate = 1",
            "working-set = \"8M\"",
            "write-order = \"hot\"",
            "pattern = \"zero\"",
            "zero-share = 1",
            "image-share = 1",
            "run-length = \"4K\"",
            "shuffle = \"4K\"",
            "read-rate = 1",
        ] {
            let key = line.split(' ').next().unwrap();
            refused(&format!("kernel = \"/k\"\n{line}"), &format!("2: {key}: "), "workload");
            refused(&format!("firmware = \"/f\"\n{line}"), &format!("2: {key}: "), "workload");
            refused(
                &format!("{line}\n[[disk]]\npath = \"/d\""),
                &format!("1: {key}: "),
                "workload",
            );
        }
    }

    #[test]
    fn firmware_takes_a_machine_with_pci_and_nothing_of_a_kernels() {
        let disk = "[[disk]]\npath = \"/d\"";
        let spec = read(&format!("firmware = \"/f\"\nrng = true\nvsock = 3\n{disk}")).unwrap();
        assert_eq!((spec.machine(), spec.has_system()), (MachineKind::Pci, true));
        let machine = |kind: &str| format!("firmware = \"/f\"\nmachine = \"{kind}\"\n{disk}");
        assert_eq!(read(&machine("pci")).unwrap().machine(), MachineKind::Pci);
        refused(&machine("mmio"), "2: machine: ", "needs the machine `pci`");
        refused("firmware = \"/f\"\nkernel = \"/k\"", "1: firmware: ", "not both");
        for line in ["initrd = \"/i\"", "cmdline = \"x\"", "acpi = \"on\""] {
            let key = line.split(' ').next().unwrap();
            refused(&format!("firmware = \"/f\"\n{line}"), &format!("2: {key}: "), "`kernel`");
        }
        let relative = format!("firmware = \"f\"\n{disk}");
        refused(&relative, "1: firmware: ", "`f` must be an absolute path");
        // What it boots from counts when it is started.
        let boots = |text: &str| read(text).unwrap().check_boots();
        assert!(boots("firmware = \"/f\"").unwrap_err().what.contains("give it a `disk`"));
        for other in ["[[net]]\nbridge = \"br0\"", "device = [\"vfio=03:00.0\"]"] {
            boots(&format!("firmware = \"/f\"\n{other}")).unwrap();
        }
        let of = |text: &str| read(text).unwrap().machine();
        assert_eq!(of("kernel = \"/k\""), MachineKind::Pci);
        assert_eq!(of("kernel = \"/k\"\nmachine = \"mmio\""), MachineKind::Mmio);
        assert_eq!(of("kernel = \"/k\"\nacpi = \"off\""), MachineKind::Mmio);
        assert_eq!(of(""), MachineKind::Mmio);
    }

    #[test]
    fn an_invalid_disk_is_named_by_its_number() {
        let disk =
            |lines: &str| format!("kernel = \"/k\"\n[[disk]]\npath = \"/a\"\n[[disk]]\n{lines}");
        refused(&disk("path = \"/b\"\nro = true"), "6: disk[1].ro: ", "`read-only`");
        refused(&disk("path = \"/b\"\nread-only = 1"), "6: disk[1].read-only: ", "true or false");
        refused(&disk("path = \"b\""), "5: disk[1].path: ", "`b` must be an absolute path");
        refused(&disk("path = \"\""), "5: disk[1].path: ", "needs a path");
        let serial = "s".repeat(21);
        refused(
            &disk(&format!("path = \"/b\"\nserial = \"{serial}\"")),
            "6: disk[1].serial: ",
            "20",
        );
        refused(&disk("serial = \"x\""), "4: disk[1]", "missing key `path`");
        refused("kernel = \"vmlinuz\"", "1: kernel: ", "`vmlinuz` must be an absolute path");
    }

    #[test]
    fn an_invalid_network_device_is_named_by_its_number() {
        let net = |lines: &str| format!("kernel = \"/k\"\n[[net]]\ntap = \"t0\"\n[[net]]\n{lines}");
        refused(&net("mac = \"01:00:5e:00:00:01\""), "5: net[1].mac: ", "01:00:5e");
        refused(&net("bridge = \"a b\""), "5: net[1].bridge: ", "a b");
        refused(&net("tap = \"a/b\""), "5: net[1].tap: ", "a/b");
        refused(&net("mtu = 9000"), "5: net[1].mtu: ", "`bridge`");
        refused(&net("tap = \"t1\"\nstandby = true"), "6: net[1].standby: ", "needs mac=");
        refused(&net("tap = \"t1\"\nqueues = 9"), "6: net[1].queues: ", "1 to 8");
        let half = "machine = \"mmio\"\nkernel = \"/k\"\n[[net]]\ntap = \"t0\"\nmac = \"52:54:00:00:00:01\"\nstandby = true";
        refused(half, "6: net[0].standby: ", "`machine");
        let twins = "[[net]]\ntap = \"t0\"\nmac = \"52:54:00:00:00:01\"\n".repeat(2);
        refused(&format!("kernel = \"/k\"\n{twins}"), "7: net[1].mac: ", "give one another mac");
        refused(
            "kernel = \"/k\"\n[[net]]\nmac = \"52:54:00:00:00:01\"",
            "1: net[0].bridge: ",
            "a tap",
        );
        refused("[[net]]\nbridge = \"br0\"", "1: net: ", "`kernel`");
    }

    #[test]
    fn addresses_are_chosen_once_however_the_devices_are_written() {
        let kernel = "kernel = \"/k\" # mine\n";
        let tables = "[[net]]\n# A comment,\n  bridge = \"br0\"\n[[net]]\nmac = \"52:54:00:00:00:01\"\ntap = \"t0\"\n[[net]]\ntap = \"t1\"";
        let inline = "net = [{ bridge = \"br0\" }, { mac = \"52:54:00:00:00:01\", tap = \"t0\" }, { tap = \"t1\" }]";
        let document = |text: String| Document { spec: read(&text).unwrap(), text };
        let given = |spec: &GuestSpec| spec.net.iter().map(|net| net.mac).collect::<Vec<_>>();
        for text in [tables, inline] {
            let text = format!("{kernel}# The database,\nname = \"db\"\n{text}");
            let defined = document(document(text.clone()).text_to_keep(None).unwrap());
            let macs = given(&defined.spec);
            assert!(macs.iter().all(Option::is_some) && macs[0] != macs[2], "{}", defined.text);
            assert_eq!(macs[1].unwrap().to_string(), "52:54:00:00:00:01");
            assert!(defined.text.starts_with(kernel), "what was written stays");
            assert_eq!(defined.text_to_keep(None).unwrap(), defined.text);
            let again = document(text).text_to_keep(Some(&Kept::of(&defined.spec))).unwrap();
            assert_eq!(given(&read(&again).unwrap()), macs, "defined again, it keeps them");
            assert_eq!(read(&again).unwrap().uuid, defined.spec.uuid, "and is the same guest");
        }
    }

    #[test]
    fn a_defined_guest_keeps_its_machine() {
        let kept = |text: &str, before: Option<Kept>| {
            let document = Document { spec: read(text).unwrap(), text: text.to_owned() };
            read(&document.text_to_keep(before.as_ref()).unwrap()).unwrap().machine
        };
        let (pci, mmio) = (Some(MachineKind::Pci), Some(MachineKind::Mmio));
        let of = |machine| Kept { machine, ..Kept::default() };
        assert_eq!(kept("kernel = \"/k\"", None), pci);
        assert_eq!(kept("kernel = \"/k\"", Some(of(mmio))), mmio);
        assert_eq!(kept("kernel = \"/k\"\nacpi = \"off\"", None), mmio);
        assert_eq!(kept("kernel = \"/k\"\nmachine = \"pci\"", Some(of(mmio))), pci);
        let firmware = "firmware = \"/f\"\n[[disk]]\npath = \"/d\"";
        assert_eq!(kept(firmware, Some(of(mmio))), pci);
        assert_eq!(kept("", Some(of(mmio))), None);
        let read = Kept::parse("name = \"db\"\nmachine = \"mmio\"", &"db".parse().unwrap());
        assert_eq!(read, Some(of(mmio)));
    }

    #[test]
    fn another_guest_does_not_take_the_place_of_one_that_is_defined() {
        let spec =
            |uuid: u128| GuestSpec { uuid: Some(Uuid::from_u128(uuid)), ..read("").unwrap() };
        let document = Document { text: String::new(), spec: spec(1) };
        let kept = |uuid| Kept::of(&spec(uuid));
        assert_eq!(document.text_to_keep(Some(&kept(1))).unwrap(), "");
        let refused = document.text_to_keep(Some(&kept(2))).unwrap_err().to_string();
        assert!(refused.contains("another guest"), "{refused}");
    }

    #[test]
    fn what_a_guest_keeps_is_read_from_a_file_with_a_fault() {
        let name: GuestName = "db".parse().unwrap();
        let wanted = Kept::of(&read(FULL).unwrap());
        assert!(wanted.uuid.is_some() && wanted.addresses[0].is_some());
        for (key, fault) in [("\"1G\"", "\"1GB\""), ("cpus = 2", "cpu-count = 2")] {
            let text = FULL.replace(key, fault);
            read(&text).unwrap_err();
            assert_eq!(Kept::parse(&text, &name).as_ref(), Some(&wanted), "{fault}");
        }
        assert_eq!(Kept::parse("name = \"db\"\nx = 1", &name), Some(Kept::default()));
        for text in ["name = \"db\"\nuuid = \"8f\"", "name = \"web\"", "", "name ="] {
            assert_eq!(Kept::parse(text, &name), None, "{text}");
        }
    }

    #[test]
    fn invalid_toml_is_refused_with_its_line() {
        refused("cpus = 1\ncpus = 2", "2: ", "duplicate key");
        refused("cpus = 1\nname = \"web", "2: ", "");
        refused("cpus", "1: ", "");
        // Deep nesting must not crash the program.
        refused(&format!("x = {}", "[".repeat(60_000)), "1: ", "");
    }

    #[test]
    fn unsuitable_files_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.toml");
        let complain = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            format!("{:#}", Document::read(&path).unwrap_err())
        };
        assert!(complain(&[0xff]).contains("web.toml: it is not valid UTF-8"));
        assert!(complain(&vec![b' '; 1 << 17]).contains("web.toml: it is too large"));
        assert!(complain(b"cpus = 1\nx = 1").contains("web.toml:2: x: "));
        assert!(format!("{:#}", Document::read(folder.path()).unwrap_err()).contains("a folder"));
    }
}
