//! `lighter version`: the versions of this program, of its formats, of KVM and the kernel, and of
//! the processes of lighter that run on this host.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use migrate::protocol::SUPPORTED_VERSIONS;
use serde::{Deserialize, Serialize};
use vmm_core::snapshot::{SAVED_VERSIONS, TEMPLATE_VERSION};

use super::session::block_on;
use crate::api::ApiClient;
use crate::api::client::guest_info;
use crate::cli::Output;
use crate::cli::watch::VersionArgs;
use crate::exit::Exit;
use crate::names::GuestName;
use crate::output;
use crate::state_dir::{GuestDir, StateDir};
use crate::table::facts;
use crate::version::{REVISION, VERSION};

/// How long a process may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// All that is shown.
#[derive(Debug, Serialize)]
struct Versions {
    /// Version of this program.
    version: &'static str,
    /// Commit of this build, if it is known.
    revision: Option<&'static str>,
    /// Versions of the migration protocol that it speaks, oldest first.
    protocol_versions: Vec<u16>,
    /// Versions of the format of saved guests that it reads, oldest first; it writes the last one.
    saved_versions: Vec<u32>,
    /// Version of the templates' format.
    template_version: u32,
    /// Release of the kernel.
    kernel: Option<String>,
    /// The KVM of this host.
    kvm: KvmVersion,
    /// The node of this host; `null` if none runs, or it does not answer.
    node: Option<NodeVersion>,
    /// The guests of this host.
    guests: Vec<GuestVersion>,
}

/// The KVM of this host.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct KvmVersion {
    /// Version of its API, if it can be used.
    api_version: Option<i32>,
    /// Why it cannot be used.
    error: Option<String>,
}

/// The part of `GET /v1/node` that is shown, in the hope that all versions have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct NodeVersion {
    /// Version of lighter that it runs.
    version: String,
    /// Its process.
    pid: u32,
}

/// The version of a guest's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct GuestVersion {
    /// The guest's name.
    name: GuestName,
    /// Version of lighter that its process runs; `None` if it does not answer, or is of a version
    /// that does not say.
    version: Option<String>,
}

/// Shows the versions. What cannot be found out is left out, with a note on stderr.
///
/// # Errors
/// If the result cannot be printed.
pub(crate) fn run(state: &StateDir, args: &VersionArgs) -> Result<Exit> {
    let (node, guests) = block_on(async { Ok((node(state).await, guests(state).await)) })?;
    let left_out = |what: &str, error: &anyhow::Error| {
        output::note(format_args!("the version of {what} is left out: {error:#}"));
    };
    let versions = Versions {
        version: VERSION,
        revision: REVISION,
        protocol_versions: SUPPORTED_VERSIONS.iter().map(|version| version.0).collect(),
        saved_versions: SAVED_VERSIONS.collect(),
        template_version: TEMPLATE_VERSION,
        kernel: kernel(),
        kvm: kvm(),
        node: node.unwrap_or_else(|error| {
            left_out("the node", &error);
            None
        }),
        guests: guests.unwrap_or_else(|error| {
            left_out("guests", &error);
            Vec::new()
        }),
    };
    match args.json.output() {
        Output::Json => output::print_json(&versions)?,
        Output::Text => output::print(text(&versions))?,
    }
    Ok(Exit::Done)
}

/// Returns the kernel's release, as `uname -r` prints it.
fn kernel() -> Option<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    Some(release.trim().to_owned())
}

fn kvm() -> KvmVersion {
    match vmm_core::kvm_api_version() {
        Ok(version) => KvmVersion { api_version: Some(version), error: None },
        Err(error) => KvmVersion { api_version: None, error: Some(error.to_string()) },
    }
}

/// Asks the node; `None` if none runs.
async fn node(state: &StateDir) -> Result<Option<NodeVersion>> {
    let client = ApiClient::new(&state.client_socket()).with_patience(PATIENCE);
    match client.get("/v1/node").await {
        Ok(node) => Ok(Some(node)),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) if error.is_forbidden() => {
            Err(error).context("this user may not ask it (`--readonly` may look)")
        }
        Err(error) => Err(error.into()),
    }
}

/// Asks the guests, all concurrently.
async fn guests(state: &StateDir) -> Result<Vec<GuestVersion>> {
    let guests = state.live_guests()?;
    try_join_all(guests.iter().map(guest)).await
}

async fn guest(dir: &GuestDir) -> Result<GuestVersion> {
    let client = ApiClient::new(&dir.client_socket()).with_patience(PATIENCE);
    let version = guest_info(dir.name(), &client).await?.and_then(|info| info.version);
    Ok(GuestVersion { name: dir.name().clone(), version })
}

fn text(versions: &Versions) -> String {
    let list = |numbers: &[u32]| {
        let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
        numbers.join(", ")
    };
    let mut lines = vec![("lighter", versions.version.to_owned())];
    lines.extend(versions.revision.map(|revision| ("Revision", revision.to_owned())));
    let protocol: Vec<u32> = versions.protocol_versions.iter().map(|it| u32::from(*it)).collect();
    lines.push(("Protocol", list(&protocol)));
    let saved = match versions.saved_versions.as_slice() {
        [] | [_] => list(&versions.saved_versions),
        [earlier @ .., written] => format!("{written}, reads {} as well", list(earlier)),
    };
    lines.push(("Saved guests", saved));
    lines.push(("Templates", versions.template_version.to_string()));
    lines.extend(versions.kernel.iter().map(|kernel| ("Kernel", kernel.clone())));
    let kvm = match (&versions.kvm.api_version, &versions.kvm.error) {
        (Some(version), _) => format!("API {version}"),
        (None, Some(error)) => format!("unusable: {error}"),
        (None, None) => "unusable".to_owned(),
    };
    lines.push(("KVM", kvm));
    let node = versions.node.as_ref();
    lines.extend(node.map(|node| ("Node", format!("{} (PID {})", node.version, node.pid))));
    lines.extend(guest_lines(&versions.guests).into_iter().map(|line| ("Guests", line)));
    facts(&lines)
}

/// Formats the guests: how many run this version, and the names of all others.
fn guest_lines(guests: &[GuestVersion]) -> Vec<String> {
    let mut others: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut same = 0;
    for guest in guests {
        match guest.version.as_deref() {
            Some(VERSION) => same += 1,
            version => {
                let names = others.entry(version.unwrap_or("unknown")).or_default();
                names.push(guest.name.as_str());
            }
        }
    }
    let same = (same > 0).then(|| format!("{VERSION}: {same}"));
    let others = others.iter().map(|(version, names)| format!("{version}: {}", names.join(", ")));
    same.into_iter().chain(others).collect()
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use axum::{Json, Router};
    use serde_json::json;

    use super::*;
    use crate::api::server::{Audience, Server};
    use crate::api::types::GuestInfo;
    use crate::file_lock::FileLock;

    fn guest_version(name: &str, version: Option<&str>) -> GuestVersion {
        GuestVersion { name: name.parse().unwrap(), version: version.map(str::to_owned) }
    }

    #[test]
    fn guests_of_other_versions_are_named() {
        assert_eq!(guest_lines(&[]), Vec::<String>::new());
        let guests = [
            guest_version("a", Some(VERSION)),
            guest_version("b", Some("0.0.9")),
            guest_version("c", None),
            guest_version("d", Some("0.0.9")),
            guest_version("e", Some(VERSION)),
        ];
        let expected = [format!("{VERSION}: 2"), "0.0.9: b, d".to_owned(), "unknown: c".to_owned()];
        assert_eq!(guest_lines(&guests), expected);
    }

    #[test]
    fn the_text_has_a_line_for_each_version_and_says_why_kvm_is_not_usable() {
        let mut versions = Versions {
            version: VERSION,
            revision: None,
            protocol_versions: vec![1],
            saved_versions: vec![1, 2],
            template_version: 1,
            kernel: Some("6.18.5".to_owned()),
            kvm: KvmVersion { api_version: Some(12), error: None },
            node: None,
            guests: Vec::new(),
        };
        let expected = format!(
            "lighter       {VERSION}\n\
             Protocol      1\n\
             Saved guests  2, reads 1 as well\n\
             Templates     1\n\
             Kernel        6.18.5\n\
             KVM           API 12\n"
        );
        assert_eq!(text(&versions), expected);
        versions.kvm = KvmVersion { api_version: None, error: Some("no such device".to_owned()) };
        versions.node = Some(NodeVersion { version: "0.0.9".to_owned(), pid: 7 });
        let shown = text(&versions);
        assert!(shown.contains("unusable: no such device"), "{shown}");
        assert!(shown.contains("Node          0.0.9 (PID 7)\n"), "{shown}");
    }

    #[tokio::test]
    async fn processes_of_other_versions_are_asked_for_theirs() {
        let (_folder, state) = StateDir::temporary();
        assert_eq!(node(&state).await.unwrap(), None);
        let later = json!({ "version": "9.0.0", "pid": 7, "what": "is not known here" });
        let router = Router::new().route("/v1/node", get(async move || Json(later.clone())));
        let _node = Server::start(&state.node_socket(), router, Audience::Owner).unwrap();
        let expected = NodeVersion { version: "9.0.0".to_owned(), pid: 7 };
        assert_eq!(node(&state).await.unwrap(), Some(expected));

        let dir = state.guest(&"web".parse().unwrap());
        std::fs::create_dir_all(dir.path()).unwrap();
        let _lock = FileLock::try_acquire(&dir.path().join("lock")).unwrap().unwrap();
        let mut info = serde_json::to_value(GuestInfo::example("web")).unwrap();
        for (told, expected) in [(json!("0.2.0"), Some("0.2.0")), (json!(null), None)] {
            info["version"] = told;
            let answer = info.clone();
            let router = Router::new().route("/v1/guest", get(async move || Json(answer.clone())));
            let server = Server::start(&dir.socket(), router, Audience::Owner).unwrap();
            assert_eq!(guests(&state).await.unwrap(), [guest_version("web", expected)]);
            drop(server);
            std::fs::remove_file(dir.socket()).unwrap();
        }
        assert_eq!(guests(&state).await.unwrap(), [guest_version("web", None)]);
    }
}
