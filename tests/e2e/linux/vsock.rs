//! Programs on both hosts talk to a Linux guest by vsock while it migrates: its connections end,
//! and new ones can be made.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use support::checks::nothing_left_behind;
use support::linux::image::Image;
use support::linux::witness::{CheckConsole, Line};
use support::{Host, Migration, Pair, wait};

/// Limit of the guest's answer, where its kernel is emulated.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// Connects a program on `host` to the guest's port `port`.
fn connect(host: &Host, port: u32) -> UnixStream {
    let shown = host.run(&["show", "linux", "--json"]).ok().json();
    assert_eq!(shown["vsock"]["cid"], 3, "{shown:#}");
    let socket = shown["vsock"]["socket"].as_str().expect("a socket");
    let mut stream = UnixStream::connect(Path::new(socket)).expect("a connection");
    stream.set_read_timeout(Some(ANSWER_PATIENCE)).expect("a limit");
    writeln!(stream, "CONNECT {port}").expect("a request");
    stream
}

/// Reads to the end of a line; returns an empty string if the stream ends first.
fn line(stream: &mut UnixStream) -> String {
    let (mut line, mut byte) = (String::new(), [0]);
    while stream.read(&mut byte).expect("an answer in time") == 1 {
        line.push(char::from(byte[0]));
        if byte == *b"\n" {
            break;
        }
    }
    line
}

/// A connection to the guest's echo program. Some time after it has arrived, the guest's driver
/// resets all connections that it knows, including those made since the arrival: a program has to
/// retry.
fn talk(host: &Host) -> UnixStream {
    wait::within(ANSWER_PATIENCE, "the guest says back what is said", || {
        let mut stream = connect(host, 1024);
        let answer = line(&mut stream);
        if !answer.starts_with("OK ") || writeln!(stream, "hello from outside").is_err() {
            return Err(answer);
        }
        match line(&mut stream) {
            echo if echo == "hello from outside\n" => Ok(stream),
            other => Err(other),
        }
    })
}

fn await_line(witness: &CheckConsole, what: &str, holds: impl Fn(&Line) -> bool) {
    wait::within(ANSWER_PATIENCE, what, || {
        let line = witness.line();
        if holds(&line) { Ok(()) } else { Err(line) }
    });
}

#[test]
fn linux_talks_to_programs_of_its_current_host() {
    let pair = Pair::new();
    let image = Image::halting();
    pair.a.run(&["restore", image.file(), "--name", "linux", "--detach"]).ok();
    let mut stream = talk(&pair.a);
    let before = CheckConsole::of(&pair.a, "linux", image.pages()).line();
    assert_eq!(line(&mut connect(&pair.a, 9)), "", "nobody listens at this port of the guest");

    Migration::run(&pair.a, "linux", &pair.b).ok();
    let ended = stream.read(&mut [0]);
    let is_over = matches!(&ended, Ok(0))
        || ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
    assert!(is_over, "connections do not go along: {ended:?}");
    let witness = CheckConsole::of(&pair.b, "linux", image.pages());
    await_line(&witness, "the guest hears that its connection is gone", |line| {
        line.get("resets") == before.get("resets") + 1
    });
    drop(talk(&pair.b));
    let after = witness.line();
    after.follows(&before);
    assert!(after.get("echoed") > before.get("echoed"), "{after:?}");
    nothing_left_behind(&pair.hosts());
}
