//! The serial console: several users read and type on that of a guest that echoes its input.

use std::io::{PipeWriter, Write, pipe};
use std::os::unix::net::UnixStream;

use support::checks::nothing_left_behind;
use support::kernel::kernel;
use support::{Guest, Pair, Running, lighter, wait};

/// Writes "hi" and a newline to the serial port, and then echoes whatever it reads from the port.
pub(super) const PROGRAM: [u8; 30] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'h', 0xee, // mov al, 'h'; out dx, al
    0xb0, b'i', 0xee, //
    0xb0, b'\n', 0xee, //
    0x66, 0xba, 0xfd, 0x03, // read: mov dx, 0x3fd
    0xec, 0xa8, 0x01, // in al, dx; test al, 1
    0x74, 0xf7, // jz read
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, 0xee, // in al, dx; out dx, al
    0xeb, 0xef, // jmp read
];

/// Starts the echoing guest on host a.
pub(super) fn start_echo(pair: &Pair) -> Guest {
    let path = kernel(&pair.folder().join("echo"), &PROGRAM).display().to_string();
    let line = ["run", "--detach", "--name", "echo", "--memory", "64M", "--kernel", &path];
    pair.a.run(&line).ok();
    pair.a.guest("echo")
}

/// Starts `lighter console`; returns it with the pipe that serves as its keyboard.
fn watch(pair: &Pair) -> (Running, PipeWriter) {
    let (keys, keyboard) = pipe().expect("a pipe");
    let mut command = lighter(pair.a.state_dir(), &["console", "echo"]);
    command.stdin(keys);
    (Running::start(command), keyboard)
}

/// Waits until the console's output is exactly `text`.
#[track_caller]
fn shows(console: &Running, text: &str) {
    wait::until(&format!("the console shows {text:?}"), || {
        let (stdout, stderr) = console.said();
        wait::holds(stdout == text, (stdout, stderr))
    });
}

#[test]
fn several_clients_share_one_console_and_each_can_type() {
    let pair = Pair::without_nodes();
    start_echo(&pair);
    let (first, mut first_keys) = watch(&pair);
    shows(&first, "hi\n");
    first_keys.write_all(b"one ").expect("a keyboard");
    shows(&first, "hi\none ");

    let (second, mut second_keys) = watch(&pair);
    shows(&second, "hi\none ");
    // More than fits into the port's buffer at once, with multi-byte characters.
    let long = format!("{} äöü.", "x".repeat(300));
    second_keys.write_all(long.as_bytes()).expect("a keyboard");
    for console in [&first, &second] {
        shows(console, &format!("hi\none {long}"));
    }

    first_keys.write_all(b"bye\x1dnever").expect("a keyboard");
    first.finish().ok();
    shows(&second, &format!("hi\none {long}bye"));

    pair.a.run(&["destroy", "echo"]).ok();
    let done = second.finish().ok();
    assert!(done.stderr.contains("echo was ended on request"), "{done:?}");
    nothing_left_behind(&[&pair.a]);
}

#[test]
fn end_of_input_does_not_end_the_console() {
    let pair = Pair::without_nodes();
    start_echo(&pair);
    let (console, mut keys) = watch(&pair);
    keys.write_all(b"last").expect("a keyboard");
    drop(keys);
    shows(&console, "hi\nlast");
    let (other, mut keys) = watch(&pair);
    keys.write_all(b" words").expect("a keyboard");
    shows(&console, "hi\nlast words");
    drop((console, other));
    pair.a.run(&["console", "nobody"]).complains(support::Exit::Failed, &["live here: echo"]);
}

#[test]
fn console_clients_that_never_read_block_no_other() {
    let pair = Pair::without_nodes();
    let guest = start_echo(&pair);
    let question =
        "GET /v1/guest/console?from=3&wait_ms=30000 HTTP/1.1\r\nhost: x\r\n\r\n".repeat(20);
    let hostile: Vec<UnixStream> = (0..100)
        .map(|_| {
            let mut stream = UnixStream::connect(guest.socket()).expect("a connection");
            stream.write_all(question.as_bytes()).expect("a question");
            stream
        })
        .collect();

    let (console, mut keys) = watch(&pair);
    shows(&console, "hi\n");
    keys.write_all(b"still here").expect("a keyboard");
    shows(&console, "hi\nstill here");
    assert_eq!(guest.state().as_deref(), Some("running"));
    pair.a.run(&["destroy", "echo"]).ok();
    console.finish().ok();
    drop(hostile);
    nothing_left_behind(&[&pair.a]);
}
