//! A Linux guest whose disk fits into its page cache as long as its balloon is empty.

use std::fs::File;
use std::time::Duration;

use serde_json::{Value, json};

use support::linux::image::{BOOT_PATIENCE, cmdline, script};
use support::linux::witness::CheckConsole;
use support::{Guest, Host, wait};

/// The guest's name.
const NAME: &str = "linux";
/// Memory size of the guest.
pub(crate) const ALL_BYTES: u64 = 128 << 20;
/// Pages that the check program checks: 1 MiB.
const CHECKED_PAGES: u64 = 256;
/// Size of the guest's disk, in bytes.
const DISK_BYTES: u64 = 32 << 20;
/// Limit for Linux to inflate or deflate its balloon where its kernel is emulated, or to read.
const PATIENCE: Duration = Duration::from_secs(300);

/// The Linux guest, and its console.
#[derive(Debug)]
pub(crate) struct Linux {
    guest: Guest,
    witness: CheckConsole,
}

impl Linux {
    /// Boots the guest on `host`, and waits for its memory statistics.
    pub(crate) fn boot(host: &Host) -> Self {
        let disk = host.state_dir().join("disk.raw");
        let file = File::create(&disk).expect("a file");
        file.set_len(DISK_BYTES).expect("room for the disk");
        let [kernel, initrd] =
            [script("kernel.sh", &["vmlinux", "own"]), script("initramfs.sh", &[])];
        let cmdline = cmdline("mem=124M check.mib=1 check.rate=100 check.halt=1");
        let disk = format!("{},ro", disk.display());
        let arguments = ["run", "--detach", "--name", NAME, "--memory", "128M", "--disk", &disk];
        let boot = ["--kernel", &kernel, "--initrd", &initrd, "--cmdline", &cmdline];
        host.run(&[arguments.as_slice(), &boot].concat()).ok();
        let witness = CheckConsole::of(host, NAME, CHECKED_PAGES);
        wait::within(BOOT_PATIENCE, "linux boots and checks itself", || {
            witness.last_line().ok_or_else(|| witness.console())
        });
        let linux = Self { guest: host.guest(NAME), witness };
        wait::until("its kernel counts page faults: else remove target/guest/vmlinux", || {
            let seen = linux.balloon();
            wait::holds(seen["statistics"]["major_faults"].is_u64(), seen)
        });
        // Regular output would cause work that is not part of the measurement.
        linux.type_letter('s');
        linux
    }

    /// Everything that the guest has written to its console.
    pub(crate) fn said(&self) -> String {
        self.witness.console()
    }

    /// Types a letter on the guest's console.
    pub(crate) fn type_letter(&self, letter: char) {
        let input = json!({ "input": letter });
        let answer = self.guest.request("PUT", "/v1/guest/console", Some(&input));
        answer.success().expect("it is typed");
    }

    /// The state of the guest's balloon. The request makes the driver send new statistics.
    pub(crate) fn balloon(&self) -> Value {
        self.guest.get("/v1/guest/balloon").expect("an answer")
    }

    /// Has the node reclaim the memory that the guest does not need, which includes its cache.
    pub(crate) fn await_squeeze(&self, host: &Host) {
        wait::within(PATIENCE, "the node takes what linux does not need", || {
            host.run(&["density", "apply"]).ok();
            let seen = self.balloon();
            let target = seen["target_bytes"].as_u64().unwrap_or(ALL_BYTES);
            wait::holds(target < ALL_BYTES / 2 && seen["actual_bytes"] == target, seen)
        });
    }

    /// Waits until the balloon leaves the guest `bytes`.
    pub(crate) fn await_actual(&self, bytes: u64) {
        wait::within(PATIENCE, "linux follows its balloon's target", || {
            let seen = self.balloon();
            wait::holds(seen["actual_bytes"] == bytes, seen)
        });
    }

    /// Waits until the guest has printed `text` for the `count`th time.
    pub(crate) fn await_text(&self, text: &str, count: usize) {
        wait::within(PATIENCE, text, || {
            let said = self.said();
            wait::holds(said.matches(text).count() >= count, said)
        });
    }
}
