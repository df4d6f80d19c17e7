//! The files that may be in a state folder when nothing is in progress.

use std::collections::BTreeSet;

/// Whether `file` may be in the state folder of a host that has these guests.
pub fn belongs(file: &str, guests: &BTreeSet<&str>) -> bool {
    let parts: Vec<&str> = file.split('/').collect();
    match parts.as_slice() {
        ["node.sock" | "node-ro.sock" | "node.json" | "node.lock"]
        | ["counted.json" | "autostarted.json" | "merge-domain"]
        | ["density.json" | "ksm.json.lock" | "lighter.toml"]
        | ["density-history", "lock"]
        | ["certs", _]
        | ["certs", "issued", _] => true,
        ["density-history", log] => log.ends_with(".log"),
        ["definitions", file] => file.ends_with(".toml") || file.ends_with(".autostart"),
        // Records of guests that are gone stay until another guest starts.
        ["migrations", "guests", _, _, record] | ["migrations", "past", record] => {
            record.ends_with(".json")
        }
        [
            "ended",
            "guests",
            _,
            "ended.json" | "failed.json" | "console.log" | "console.log.old" | "lighter.log",
        ] => true,
        ["departed", "guests", _, _, record] => record.ends_with(".shared"),
        ["identities", uuid] => uuid.ends_with(".json"),
        [
            "guests",
            name,
            "lock" | "guest.json" | "here" | "here.new" | "api.sock" | "api-ro.sock",
        ]
        | ["guests", name, "console.log" | "lighter.log"] => guests.contains(name),
        ["vsock", socket] => socket.strip_suffix(".sock").is_some_and(|name| guests.contains(name)),
        _ => false,
    }
}
