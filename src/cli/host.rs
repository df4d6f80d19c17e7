//! Arguments of the verbs about a host: node, incoming, certs, and the demo, which makes two.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;

use super::JsonFlag;
use super::host_device::HostDeviceArg;
use super::isolation::IsolationArgs;
use super::net::{NetRename, interface_name, interface_names};
use super::spec::PatternArg;
use crate::address::{NODE_PORT, PortRange};
use crate::names::GuestName;
use crate::units::{MIB, Size, parse_size};

/// `lighter demo`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter demo
  lighter demo --memory 2G --cpus 2 --dirty-rate 20000 --working-set 64M
  lighter demo --json

Two hosts with their nodes and certificates are created in a temporary folder,
and removed at the end, also after Ctrl-C.")]
pub(crate) struct DemoArgs {
    /// Guest memory, binary units: 512M, 1G.
    #[arg(long, short, value_parser = parse_size, default_value = "512M", value_name = "SIZE", allow_negative_numbers = true)]
    pub(crate) memory: u64,

    /// Virtual CPUs, 1 to 8.
    #[arg(long, short, value_parser = clap::value_parser!(u8).range(1..=8), default_value_t = 1, value_name = "N")]
    pub(crate) cpus: u8,

    /// Pages of 4 KiB that the guest writes each second, all vCPUs together.
    #[arg(long, default_value_t = 2000, value_name = "PAGES")]
    pub(crate) dirty_rate: u32,

    /// Memory that it keeps writing to.
    #[arg(long, value_parser = parse_size, default_value = "64M", value_name = "SIZE")]
    pub(crate) working_set: u64,

    /// What the guest's pages hold.
    #[arg(long, value_enum, default_value_t, value_name = "PATTERN")]
    pub(crate) pattern: PatternArg,

    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// `lighter node`, and the keys of its file (`--config`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[command(after_help = "\
Examples:
  lighter node
  lighter node --config /etc/lighter/node.toml
  lighter node --listen 192.0.2.7:4950 --metrics 127.0.0.1:9450
  lighter node --net-map br0=lan      the bridge br0 of other hosts is lan here
  lighter node --net-allow lan,dmz    arriving guests get no other network
  lighter node --disk-dir /srv/disks
  lighter node --disk-device /dev/vg0/web-1
  lighter node --device vfio=0000:03:00.0

Needs this host's certificates: see `lighter certs`. Guests do not depend on the
node: it can be restarted at any time, also while guests arrive and leave. It
stays in the foreground.

Other hosts must reach UDP port 4950, and the ports of --ports, where the
processes of arriving guests listen.")]
pub(crate) struct NodeArgs {
    /// TOML file with the other options as keys, for example `disk-dir = ["/srv/disks"]`. Options
    /// on the command line replace those of the file [default: none].
    #[arg(long, value_name = "FILE.toml")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,

    /// QUIC address on which migrations arrive; port 0 takes any free one [default: 0.0.0.0:4950].
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,

    /// UDP ports for arriving guests, one for each while it arrives; 0 takes any free one [default:
    /// 49152-49215].
    #[arg(long, value_name = "FIRST-LAST")]
    pub(crate) ports: Option<PortRange>,

    /// TCP address of /metrics and /healthz; port 0 takes any free one [default: 127.0.0.1:9450].
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<SocketAddr>,

    /// Serve metrics by HTTPS, with this host's certificate: Prometheus trusts it by the
    /// authority's `ca.pem` [default: false].
    #[arg(
        long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true"
    )]
    pub(crate) metrics_tls: Option<bool>,

    /// File with USER:PASSWORD, readable by its owner only: clients must send them (`basic_auth` of
    /// Prometheus) [default: no password].
    #[arg(long, value_name = "FILE")]
    pub(crate) metrics_auth: Option<PathBuf>,

    /// Memory kept for the host: a guest that would need it is refused [default: 256M].
    #[arg(long, value_name = "SIZE")]
    pub(crate) reserve_memory: Option<Size>,

    /// Where an arriving guest wants bridge or tap FROM, give it TO. Give it more than once for
    /// more names.
    #[arg(long, value_name = "FROM=TO")]
    pub(crate) net_map: Vec<NetRename>,

    /// Bridge or tap of this host that guests from other hosts may use (its name after --net-map);
    /// several with commas, or given several times. Others are refused [default: every bridge and
    /// tap].
    #[arg(long, value_name = "NAME[,...]", value_delimiter = ',', value_parser = interface_name)]
    #[serde(deserialize_with = "interface_names")]
    pub(crate) net_allow: Vec<String>,

    /// Folder in which, and below which, guests from other hosts may have disks: those that both
    /// hosts share, and those that are made here (`lighter migrate --copy-disks`); may be given
    /// several times [default: none, guests with disks are refused].
    #[arg(long, value_name = "DIR")]
    pub(crate) disk_dir: Vec<PathBuf>,

    /// Block device that guests from other hosts may have as a disk, or that such a disk may
    /// overwrite (`lighter migrate --replace-disks`); may be given several times [default: none].
    #[arg(long, value_name = "DEVICE")]
    pub(crate) disk_device: Vec<PathBuf>,

    /// Device of this host that a guest from another host may be given (`lighter migrate
    /// --attach-there`): the driver vfio-pci must have it then; may be given several times
    /// [default: none].
    #[arg(long, value_name = "vfio=ADDRESS")]
    pub(crate) device: Vec<HostDeviceArg>,

    /// What to do about guests that QEMU and Cloud Hypervisor run on this host (`lighter density`);
    /// of the nodes that a user runs, one acts [default: watch].
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) foreign_guests: Option<ForeignGuestsArg>,
}

impl NodeArgs {
    /// Completes these options, which were typed, with those of a file: what was typed wins.
    pub(crate) fn or(self, file: Self) -> Self {
        fn either<T>(typed: Vec<T>, file: Vec<T>) -> Vec<T> {
            if typed.is_empty() { file } else { typed }
        }
        Self {
            config: self.config,
            listen: self.listen.or(file.listen),
            ports: self.ports.or(file.ports),
            metrics: self.metrics.or(file.metrics),
            metrics_tls: self.metrics_tls.or(file.metrics_tls),
            metrics_auth: self.metrics_auth.or(file.metrics_auth),
            reserve_memory: self.reserve_memory.or(file.reserve_memory),
            net_map: either(self.net_map, file.net_map),
            net_allow: either(self.net_allow, file.net_allow),
            disk_dir: either(self.disk_dir, file.disk_dir),
            disk_device: either(self.disk_device, file.disk_device),
            device: either(self.device, file.device),
            foreign_guests: self.foreign_guests.or(file.foreign_guests),
        }
    }

    /// QUIC address on which migrations arrive.
    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen.unwrap_or(SocketAddr::from(([0, 0, 0, 0], NODE_PORT)))
    }

    /// UDP ports for arriving guests.
    pub(crate) fn ports(&self) -> PortRange {
        self.ports.unwrap_or(PortRange::DEFAULT)
    }

    /// TCP address of the metrics.
    pub(crate) fn metrics(&self) -> SocketAddr {
        self.metrics.unwrap_or(SocketAddr::from(([127, 0, 0, 1], METRICS_PORT)))
    }

    /// Whether the metrics are served by HTTPS.
    pub(crate) fn metrics_tls(&self) -> bool {
        self.metrics_tls.unwrap_or_default()
    }

    /// Memory kept for the host, in bytes.
    pub(crate) fn reserve_memory(&self) -> u64 {
        self.reserve_memory.map_or(RESERVE_BYTES, |size| size.0)
    }
}

/// TCP port of the metrics, unless the user chose another.
const METRICS_PORT: u16 = 9450;

/// Memory kept for the host, unless the user chose another amount.
const RESERVE_BYTES: u64 = 256 * MIB;

/// What a node does about guests that other programs run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ForeignGuestsArg {
    /// Optimize their memory like that of lighter's own guests.
    Act,
    /// Show their memory, and change nothing.
    #[default]
    Watch,
    /// Ignore them.
    Off,
}

/// Parses a SHA-256 fingerprint, with colons or without; returns it as `openssl x509 -fingerprint`
/// prints it.
fn fingerprint(text: &str) -> Result<String, String> {
    let digits = text.replace(':', "").to_ascii_uppercase();
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err("it has 64 hexadecimal digits, as `lighter certs sign` prints them".to_owned());
    }
    let pairs: Vec<&str> = (0..64).step_by(2).map(|at| &digits[at..at + 2]).collect();
    Ok(pairs.join(":"))
}

/// `lighter incoming`: the process of a guest that is on its way here. Started by the node, which
/// writes one line of JSON on its stdin, with the migration's token and with the identity by which
/// the process proves itself; answers with one line of JSON on stdout.
#[derive(Debug, Args)]
pub(crate) struct IncomingArgs {
    /// The guest's name on this host.
    #[arg(long)]
    pub(crate) name: GuestName,

    /// The guest's identity.
    #[arg(long)]
    pub(crate) uuid: uuid::Uuid,

    /// The migration that brings it.
    #[arg(long)]
    pub(crate) migration_id: uuid::Uuid,

    /// Address to listen on.
    #[arg(long)]
    pub(crate) bind: IpAddr,

    /// UDP ports to choose from.
    #[arg(long)]
    pub(crate) ports: PortRange,

    /// A disk that the guest will use.
    #[arg(long = "disk")]
    pub(crate) disks: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) isolation: IsolationArgs,

    /// What bridges and taps are called here.
    #[arg(long)]
    pub(crate) net_map: Vec<NetRename>,

    /// Those of them that the guest may use; all when there is none.
    #[arg(long)]
    pub(crate) net_allow: Vec<String>,

    /// Folders in which disks may be made that come with the guest.
    #[arg(long, value_name = "DIR")]
    pub(crate) disk_dir: Vec<PathBuf>,

    /// The guest has vsock: programs of the host call it, and it calls them.
    #[arg(long)]
    pub(crate) vsock: bool,
}

/// `lighter cpu-models`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter cpu-models
  lighter cpu-models --json
  lighter run --name web-1 --cpu x86-64-v3 --detach

Ask each host of a fleet, and start guests with a model that all of them can be:
they can then move to any of them. A file defines a custom model:

  base = \"x86-64-v3\"
  add = [\"sha_ni\"]
  remove = [\"avx2\"]")]
pub(crate) struct CpuModelsArgs {
    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// `lighter certs`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lighter certs init
  lighter certs request host-b 192.0.2.7 --out host-b.csr   on the new host
  lighter certs sign host-b.csr --out host-b.pem            at the authority
  lighter certs install host-b.pem                          on the new host
  lighter certs renew
  lighter certs revoke host-b
  lighter certs show

Once per fleet, on one host: `init` creates a certificate authority and this
host's own certificate. Every other host makes a key that never leaves it, and a
request for a certificate; the authority signs the request. Over ssh, from the
host of the authority, this is one line:

  ssh host-b lighter certs request host-b 192.0.2.7 | lighter certs sign - |
      ssh host-b lighter certs install -

Hosts of one authority trust each other.")]
pub(crate) struct CertsArgs {
    #[command(subcommand)]
    pub(crate) action: CertsAction,
}

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum CertsAction {
    /// Make a certificate authority, and with it this host's certificate.
    #[command(
        after_help = "Examples:\n  lighter certs init\n  lighter certs init host-a 192.0.2.5"
    )]
    Init {
        /// Names and addresses of this host [default: its host name and the loopback names].
        names: Vec<String>,
    },
    /// Make a key on this host, and a request for a certificate, to be signed where the authority
    /// is (`lighter certs sign`). The key stays here.
    #[command(after_help = "\
Examples:
  lighter certs request --out host-b.csr
  lighter certs request host-b host-b.example.net 192.0.2.7 > host-b.csr

The key is host.key, or host.key.new while another certificate is in use. The
next request is for the same key until a certificate for it is installed.")]
    Request {
        /// Names and addresses under which this host is reached [default: its host name].
        names: Vec<String>,

        /// File for the request [default: stdout].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Sign the request of another host, where the authority is: the result has the host's
    /// certificate and the authority's, and is no secret. Needs no node and no KVM.
    #[command(after_help = "\
Examples:
  lighter certs sign host-b.csr --out host-b.pem
  lighter --state-dir ~/authority certs sign host-b.csr > host-b.pem

Sign only requests that came from the host itself (over ssh, say), and check the
names that are shown: the certificate lets its host act under them. The last
line that is printed is the command for that host, with the authority's
fingerprint.")]
    Sign {
        /// The request; `-` reads stdin.
        file: PathBuf,

        /// File for the certificates [default: stdout].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Install the certificate that `lighter certs sign` made for this host.
    #[command(after_help = "\
Examples:
  lighter certs install --authority 5C:0D:... host-b.pem
  lighter certs install --replace-authority host-b.pem
  ssh host-a cat host-b.pem | lighter certs install -

`lighter certs sign` prints the first command in full. Without --authority,
install only a file that came over a secure channel: the host trusts the
authority in it. A running node uses the certificate within a minute.")]
    Install {
        /// The certificates; `-` reads stdin.
        file: PathBuf,

        /// SHA-256 fingerprint of the authority: a file with another one is refused before anything
        /// changes. Give it more than once for more authorities.
        #[arg(long, value_name = "SHA256", value_parser = fingerprint)]
        authority: Vec<String>,

        /// Trust the authority of this certificate in place of the ones that the host trusts now.
        #[arg(long)]
        replace_authority: bool,
    },
    /// Renew this host's certificate, with a new key and the same names: at once where the
    /// authority is, elsewhere by a new request (`lighter certs request`).
    #[command(after_help = "\
Examples:
  lighter certs renew                       on the host of the authority
  lighter certs renew --out host-b.csr      on any other host

The node renews automatically 30 days before the certificate expires, if the
authority is on its host; otherwise it logs a warning once a day.")]
    Renew {
        /// File for the request [default: stdout].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Make the key and the certificate for another host, to be copied there over a secure channel:
    /// `lighter certs request` keeps the key on its host.
    #[command(after_help = "\
Examples:
  lighter certs host host-b 192.0.2.7 --out ./host-b
  ssh host-b install -d -m 700 /var/lib/lighter/certs
  scp ./host-b/* host-b:/var/lib/lighter/certs/

host.key is secret: remove the copy here.")]
    Host {
        /// Names and addresses under which the host is reached.
        #[arg(required = true)]
        names: Vec<String>,

        /// Folder for its ca.pem, host.pem and host.key; becomes `certs` in its state folder.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Print key and certificate for the process of a guest, which a migration by the HTTP API
    /// takes (`identity`). Valid for 30 days, for this guest alone; whoever has it can act as its
    /// process. `lighter migrate` needs none.
    #[command(after_help = "Example:\n  lighter certs guest web-1")]
    Guest {
        /// The guest.
        name: GuestName,
    },
    /// Revoke certificates of a host, on the host where the authority was made: other hosts reject
    /// them once they have the list, crl.pem.
    #[command(after_help = "\
Examples:
  lighter certs revoke host-b
  lighter certs revoke ./host.pem

A name or an address revokes every certificate that was issued for it until now:
revoke first, then issue the replacement. Certificates that a version without
this command issued are not recorded: give their file.")]
    Revoke {
        /// A name or an address of the host, the serial of a certificate, or the file of one
        /// (host.pem).
        #[arg(value_name = "HOST|SERIAL|FILE")]
        which: String,
    },
    /// Show this host's certificates.
    #[command(after_help = "Examples:\n  lighter certs show\n  lighter certs show --json")]
    Show {
        #[command(flatten)]
        json: JsonFlag,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_with_colons_or_without() {
        let plain = "0a".repeat(32);
        let shown = vec!["0A"; 32].join(":");
        assert_eq!(fingerprint(&plain).unwrap(), shown);
        assert_eq!(fingerprint(&shown).unwrap(), shown);
        for wrong in ["", "SHA256", &plain[1..], &plain.replace('a', "g"), &"ä".repeat(32)] {
            assert!(fingerprint(wrong).is_err(), "{wrong}");
        }
    }
}
