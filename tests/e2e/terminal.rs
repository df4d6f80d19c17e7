//! `lighter run` in a terminal: the user watches the guest's console there, leaves it running, or
//! ends it.

use std::io::{PipeWriter, Write, pipe};
use std::time::{Duration, Instant};

use support::checks::nothing_left_behind;
use support::kernel::kernel;
use support::{Exit, Pair, Running, in_terminal, lighter, wait};

use crate::console::PROGRAM;

/// The key that leaves a console: Ctrl-].
const LEAVE: &[u8] = b"\x1d";

/// Ctrl-C.
const INTERRUPT: &[u8] = b"\x03";

/// Writes "bye" and a newline to the serial port, and resets the machine.
const SHORT_LIVED: [u8; 20] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'b', 0xee, // mov al, 'b'; out dx, al
    0xb0, b'y', 0xee, //
    0xb0, b'e', 0xee, //
    0xb0, b'\n', 0xee, //
    0xb0, 0xfe, 0xe6, 0x64, // mov al, 0xfe; out 0x64, al
];

/// Runs this command line of host a in a terminal; returns it with the pipe that serves as its
/// keyboard.
fn in_a_terminal(pair: &Pair, arguments: &[&str]) -> (Running, PipeWriter) {
    let (keys, keyboard) = pipe().expect("a pipe");
    let mut command = in_terminal(&lighter(pair.a.state_dir(), arguments));
    command.stdin(keys);
    (Running::start(command), keyboard)
}

/// Starts the guest `echo`, which echoes what is typed, in a terminal.
fn run_echo(pair: &Pair) -> (Running, PipeWriter) {
    let path = kernel(&pair.folder().join("echo"), &PROGRAM).display().to_string();
    in_a_terminal(pair, &["run", "--name", "echo", "--memory", "64M", "--kernel", &path])
}

/// Waits until the terminal shows `text`.
#[track_caller]
fn shows(terminal: &Running, text: &str) {
    wait::until(&format!("the terminal shows {text:?}"), || {
        let (screen, _) = terminal.said();
        wait::holds(screen.contains(text), screen)
    });
}

#[test]
fn a_guest_that_its_user_leaves_keeps_running() {
    let pair = Pair::without_nodes();
    let (terminal, mut keys) = run_echo(&pair);
    shows(&terminal, "hi");
    keys.write_all(b"one\x03two").expect("a keyboard");
    shows(&terminal, "one\u{3}two");

    keys.write_all(LEAVE).expect("a keyboard");
    let done = terminal.finish().ok();
    assert!(done.stdout.contains("echo keeps running"), "{done:?}");
    assert_eq!(pair.a.guest("echo").state().as_deref(), Some("running"));

    let (console, mut keys) = in_a_terminal(&pair, &["console", "echo"]);
    shows(&console, "also Ctrl-C; Ctrl-] leaves it running");
    shows(&console, "one\u{3}two");
    keys.write_all(LEAVE).expect("a keyboard");
    console.finish().ok();
    pair.a.run(&["destroy", "echo"]).ok();
    nothing_left_behind(&[&pair.a]);
}

/// Otherwise a guest could set the title or the clipboard of the operator's terminal.
#[test]
fn logs_show_a_guests_escape_sequences_as_text_in_a_terminal_only() {
    let pair = Pair::without_nodes();
    let (terminal, mut keys) = run_echo(&pair);
    shows(&terminal, "hi");
    let (typed, as_text) = ("\u{1b}]0;title\u{7}red", "?]0;title?red");
    keys.write_all(typed.as_bytes()).expect("a keyboard");
    shows(&terminal, typed);
    let (logs, _keys) = in_a_terminal(&pair, &["logs", "echo"]);
    let done = logs.finish().ok();
    assert!(done.stdout.contains(as_text) && !done.stdout.contains('\u{1b}'), "{done:?}");
    assert!(pair.a.run(&["logs", "echo"]).ok().stdout.contains(typed));
    pair.a.run(&["destroy", "echo"]).ok();
}

#[test]
fn a_guest_whose_terminal_is_closed_keeps_running() {
    let pair = Pair::without_nodes();
    let (terminal, keys) = run_echo(&pair);
    shows(&terminal, "hi");
    // Kills script(1), with which the terminal goes.
    drop((terminal, keys));
    // The process that watched it is gone, too.
    nothing_left_behind(&[&pair.a]);
    assert_eq!(pair.a.guest("echo").state().as_deref(), Some("running"));
    pair.a.run(&["destroy", "echo"]).ok();
    nothing_left_behind(&[&pair.a]);
}

#[test]
fn ctrl_c_ends_the_built_in_workload_when_it_is_pressed_twice() {
    let pair = Pair::without_nodes();
    let (terminal, mut keys) = in_a_terminal(&pair, &["run", "--name", "w1", "--memory", "64M"]);
    shows(&terminal, "Ctrl-C twice ends it");
    let pressed = Instant::now();
    keys.write_all(INTERRUPT).expect("a keyboard");
    shows(&terminal, "Ctrl-C again ends w1");
    assert_eq!(pair.a.guest("w1").state().as_deref(), Some("running"));
    keys.write_all(INTERRUPT).expect("a keyboard");
    // On a machine as slow as that, the second press may have counted as a first one.
    if pressed.elapsed() > Duration::from_secs(4) {
        let _typed = keys.write_all(INTERRUPT);
    }
    let done = terminal.finish().ok();
    assert!(done.stdout.contains("w1 was ended on request"), "{done:?}");
    nothing_left_behind(&[&pair.a]);
}

#[test]
fn the_output_of_a_guest_that_ends_at_once_is_shown() {
    let pair = Pair::without_nodes();
    let path = kernel(&pair.folder().join("short"), &SHORT_LIVED).display().to_string();
    let line =
        ["run", "--name", "short", "--memory", "64M", "--on-reboot", "stop", "--kernel", &path];
    for _ in 0..5 {
        let (terminal, _keys) = in_a_terminal(&pair, &line);
        let done = terminal.finish().ok();
        assert_eq!(done.stdout.matches("bye").count(), 1, "{done:?}");
        assert!(done.stdout.contains("short reset itself"), "{done:?}");
    }
    nothing_left_behind(&[&pair.a]);
}

#[test]
fn a_terminal_says_that_its_guest_was_killed() {
    let pair = Pair::without_nodes();
    let (terminal, _keys) = run_echo(&pair);
    shows(&terminal, "hi");
    pair.a.guest("echo").pid().kill();
    let done = terminal.finish();
    assert_eq!(done.exit, Exit::Failed, "{done:?}");
    assert!(done.stdout.contains("lighter: echo died (its process was killed"), "{done:?}");
}
