//! Firmware: what it says on the console when nothing boots, and files that are none. Real firmware
//! boots in the lab.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::json;
use support::kernel::{firmware, sleeper};
use support::{Exit, Pair};

/// What EDK2 says when no disk has anything to boot.
const SHELL: &str = "BdsDxe: starting Boot0002 \"EFI Internal Shell\"\r\n\
    UEFI Interactive Shell v2.2\r\nEDK II\r\nShell> ";

/// Makes a disk without content; returns its path.
fn disk(pair: &Pair, name: &str) -> String {
    let path = pair.folder().join(name);
    let file = fs::File::create(&path).expect("a file");
    file.set_len(1 << 20).expect("its size");
    path.display().to_string()
}

#[test]
fn a_guest_whose_firmware_finds_nothing_to_boot_is_shown_and_reported() {
    let pair = Pair::without_nodes();
    let firmware = firmware(&pair.folder().join("shell.fd"), SHELL).display().to_string();
    let made_of = ["--memory", "64M", "--firmware", &firmware, "--disk", &disk(&pair, "empty.raw")];
    pair.a.run(&[&["run", "--detach", "--name", "web-1"], &made_of[..]].concat()).ok();

    let mut stream = UnixStream::connect(pair.a.guest("web-1").socket()).expect("its API");
    stream.write_all(b"GET /v1/guest/events HTTP/1.1\r\nhost: guest\r\n\r\n").expect("a request");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let mut reported = String::new();
    for boots in 1..=2 {
        while reported.matches("nothing-to-boot").count() < boots {
            let mut piece = [0; 1024];
            let bytes = stream.read(&mut piece).expect("an event");
            assert_ne!(bytes, 0, "{reported}");
            reported += &String::from_utf8_lossy(&piece[..bytes]);
        }
        let shown = pair.a.run(&["show", "web-1"]).ok().stdout;
        let words = "running (its firmware has found nothing to boot";
        assert!(shown.contains(words) && shown.contains("lighter console web-1"), "{shown}");
        pair.a.run(&["reset", "web-1"]).ok();
    }
}

#[test]
fn a_guest_whose_firmware_has_changed_runs_on_when_it_is_told_to_boot_again() {
    let pair = Pair::without_nodes();
    let file = firmware(&pair.folder().join("shell.fd"), SHELL);
    let firmware = file.display().to_string();
    let made_of = ["--memory", "64M", "--firmware", &firmware, "--disk", &disk(&pair, "empty.raw")];
    pair.a.run(&[&["run", "--detach", "--name", "web-1"], &made_of[..]].concat()).ok();
    let other = fs::OpenOptions::new().append(true).open(&file).and_then(|mut it| it.write(b"x"));
    other.expect("the file is another one");
    for verb in ["reset", "reboot"] {
        let words = [&*firmware, "is not the firmware that the guest was started with"];
        pair.a.run(&[verb, "web-1"]).complains(Exit::Failed, &words);
    }
    let shown = pair.a.run(&["show", "web-1", "--json"]).ok().json();
    assert_eq!((&shown["state"], &shown["restarts"]), (&json!("running"), &json!(0)), "{shown:#}");
}

#[test]
fn files_that_are_no_firmware_or_no_image_are_refused_by_name() {
    let pair = Pair::without_nodes();
    let (kernel, disk) = (sleeper(pair.folder()).display().to_string(), disk(&pair, "empty.raw"));
    let [text, image] = ["notes.txt", "nonsense.qcow2"].map(|name| {
        let path = pair.folder().join(name);
        fs::write(&path, [b'x'; 8192]).expect("a file");
        path.display().to_string()
    });
    for (made_of, words) in [
        (["--firmware", &text, "--disk", &disk], ["cannot boot the firmware", "notes.txt"]),
        (["--firmware", &kernel, "--disk", &disk], ["no PVH entry", "CLOUDHV.fd"]),
        (["--kernel", &kernel, "--disk", &image], ["cannot use disk", "nonsense.qcow2"]),
        (["--firmware", &kernel, "--rng", "--memory=64M"], ["firmware", "give it a `disk`"]),
    ] {
        let run = ["run", "--name", "web-1", "--detach"];
        pair.a.run(&[&run[..], &made_of].concat()).complains(Exit::Failed, &words);
    }
    assert!(pair.a.list().is_empty());
}
