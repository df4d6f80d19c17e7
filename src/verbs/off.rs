//! Guests that are defined and do not run, as `ls --all` and `show` print them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::cli::spec::{GuestSpec, RestartArg};
use crate::definitions::Definition;
use crate::departures::LeftDisk;
use crate::ended::{EndRecord, Ended};
use crate::names::GuestName;
use crate::state_dir::StateDir;
use crate::table::facts;
use crate::units::format_size;

/// The state of such a guest in JSON.
const STATE: &str = "shut-off";

/// A guest that is defined and does not run.
#[derive(Debug, Serialize)]
pub(crate) struct OffGuest {
    /// Name of the guest.
    pub(crate) name: GuestName,
    /// Always `shut-off`.
    state: &'static str,
    /// Guest memory, bytes; absent when its file is damaged.
    pub(crate) memory_bytes: Option<u64>,
    /// Virtual CPUs; absent when its file is damaged.
    pub(crate) vcpus: Option<u8>,
    /// Labels of the guest.
    labels: BTreeMap<String, String>,
    /// Whether the guest starts when the host boots.
    autostart: bool,
    /// What the node does when the guest has failed, if its file says so.
    restart: Option<RestartArg>,
    /// Path of the definition file.
    definition: String,
    /// What is wrong with the definition file.
    fault: Option<String>,
    /// How the guest last ended, if that is known.
    ended: Option<Ended>,
    /// What is wrong with the record of how it last ended.
    ended_fault: Option<String>,
    /// What is kept of the console's output, or of the process's log.
    log: Option<PathBuf>,
    /// The disks with which it has left this host.
    left_disks: Vec<LeftDisk>,
}

impl OffGuest {
    /// Combines a definition with the record of how the guest last ended.
    pub(crate) fn new(definition: Definition, record: Option<EndRecord>) -> Self {
        let Definition { name, path, autostart, spec } = definition;
        let fault = spec.as_ref().err().map(|error| format!("{error:#}"));
        let spec = spec.ok();
        let (ended, ended_fault) = match record.map(|record| record.end) {
            Some(Ok(ended)) => (Some(ended), None),
            Some(Err(fault)) => (None, Some(fault)),
            None => (None, None),
        };
        Self {
            name,
            state: STATE,
            memory_bytes: spec.as_ref().and_then(GuestSpec::memory_bytes),
            vcpus: spec.as_ref().and_then(GuestSpec::vcpus),
            labels: spec.as_ref().map(GuestSpec::labels).unwrap_or_default(),
            autostart,
            restart: spec.as_ref().and_then(|spec| spec.restart),
            definition: path.display().to_string(),
            fault,
            ended,
            ended_fault,
            log: None,
            left_disks: Vec::new(),
        }
    }

    /// Adds the log that is kept of its last process, and the disks with which it has left.
    pub(crate) fn with_remains(self, state: &StateDir) -> Self {
        let left_disks = state.departures().left_by(&self.name);
        Self { log: state.ended().log_of(&self.name), left_disks, ..self }
    }

    /// Returns how the guest last ended, or what is wrong with the record of that.
    pub(crate) fn end(&self) -> Option<Result<&Ended, &String>> {
        self.ended.as_ref().map(Ok).or(self.ended_fault.as_ref().map(Err))
    }

    /// Returns the state for tables.
    pub(crate) fn state(&self) -> &'static str {
        if self.fault.is_some() { "damaged file" } else { "shut off" }
    }

    /// Formats all details for users.
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![("Name", self.name.to_string())];
        let ended = match self.end() {
            Some(Ok(ended)) => format!("; it {} ({})", ended.reason, ended.ago()),
            Some(Err(fault)) => format!("; {fault}"),
            None => String::new(),
        };
        let fault = self.fault.as_ref().map(|fault| format!(": {fault}")).unwrap_or_default();
        lines.push(("State", format!("{}{fault}{ended}", self.state())));
        lines.extend(self.vcpus.map(|count| ("VCPUs", count.to_string())));
        lines.extend(self.memory_bytes.map(|bytes| ("Memory", format_size(bytes))));
        lines.extend(labels_line(&self.labels));
        lines.extend(self.log.iter().map(|log| ("Its log", log.display().to_string())));
        lines.push(definition_line(&self.definition));
        lines.push(autostart_line(self.autostart));
        lines.extend(restart_line(self.restart));
        lines.extend(self.left_disks.iter().map(left_disk_line));
        facts(&lines)
    }
}

/// Formats a guest's labels for users, if it has any.
pub(crate) fn labels_line(labels: &BTreeMap<String, String>) -> Option<(&'static str, String)> {
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    (!pairs.is_empty()).then(|| ("Labels", pairs.join(", ")))
}

/// Formats the path of a guest's definition for users.
pub(crate) fn definition_line(path: &str) -> (&'static str, String) {
    ("Defined in", path.to_owned())
}

/// Formats for users whether a guest starts when the host boots.
pub(crate) fn autostart_line(autostart: bool) -> (&'static str, String) {
    ("Starts with the host", if autostart { "yes" } else { "no" }.to_owned())
}

/// Formats for users that the node starts a guest again which has failed, if it does.
pub(crate) fn restart_line(restart: Option<RestartArg>) -> Option<(&'static str, String)> {
    let is_wanted = restart == Some(RestartArg::OnFailure);
    is_wanted.then(|| ("On failure", "the node starts it again".to_owned()))
}

/// Formats for users a disk with which a guest has left, and how to use it all the same.
pub(crate) fn left_disk_line(disk: &LeftDisk) -> (&'static str, String) {
    let (path, host, record) = (disk.path.display(), &disk.destination, disk.record.display());
    let text = match disk.is_shared {
        true => format!("{path}, shared with {host}; if the guest runs nowhere, `rm {record}`"),
        false => format!("{path}, moved to {host}; to use it here all the same, `rm {record}`"),
    };
    ("Left with", text)
}
