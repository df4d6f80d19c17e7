//! The client against scripted monitors; `query/tests.rs` runs it against a real QEMU.

use std::path::PathBuf;

use tokio::net::UnixListener;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);
const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";
const ACCEPTED: &str = "{\"return\": {}, \"id\": 1}\r\n";

/// A monitor that sends `says` at once, whatever it is asked, and then closes the connection or
/// keeps it open.
struct Scripted {
    _folder: tempfile::TempDir,
    socket: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Afterwards {
    Closes,
    Stays,
}

impl Scripted {
    fn start(says: impl Into<Vec<u8>>, afterwards: Afterwards) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        let says = says.into();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // The client may have read enough and disconnected.
            let _ = stream.write_all(&says).await;
            if afterwards == Afterwards::Stays {
                std::future::pending::<()>().await;
            }
        });
        Self { _folder: folder, socket }
    }

    async fn connect(&self) -> Result<Qmp, ForeignError> {
        Qmp::connect(&self.socket, std::process::id(), PATIENCE).await
    }
}

fn answers(rest: &str) -> String {
    format!("{GREETING}{ACCEPTED}{rest}")
}

#[tokio::test]
async fn events_and_late_answers_are_passed_over() {
    let event = "{\"event\": \"BALLOON_CHANGE\", \"data\": {\"actual\": 1}}\r\n";
    let late = "{\"return\": {\"actual\": 5}, \"id\": 1}\n";
    let says =
        answers(&format!("{event}{late}{event}{{\"return\": {{\"actual\": 4096}}, \"id\": 2}}\n"));
    let monitor = Scripted::start(says, Afterwards::Stays);
    let mut qmp = monitor.connect().await.unwrap();
    assert_eq!(qmp.balloon_actual().await.unwrap(), Some(4096));
}

#[tokio::test]
async fn a_guest_without_a_balloon_has_none() {
    let refused =
        "{\"error\": {\"class\": \"DeviceNotActive\", \"desc\": \"No balloon\"}, \"id\": 2}\n";
    let mut qmp = Scripted::start(answers(refused), Afterwards::Stays).connect().await.unwrap();
    assert_eq!(qmp.balloon_actual().await.unwrap(), None);
    let other = refused.replace("DeviceNotActive", "GenericError");
    let mut qmp = Scripted::start(answers(&other), Afterwards::Stays).connect().await.unwrap();
    let error = qmp.balloon_actual().await.unwrap_err();
    assert!(error.to_string().contains("refused query-balloon: No balloon"), "{error}");
}

/// The answer of QEMU 10.0.
#[tokio::test]
async fn what_virtio_mem_devices_have_plugged_is_added_up() {
    let device = |kind: &str, size: u64| {
        format!(
            "{{\"type\": \"{kind}\", \"data\": {{\"id\": \"vm\", \"memaddr\": 4294967296, \"node\": 0, \"size\": {size}}}}}"
        )
    };
    let devices =
        [device("virtio-mem", 3 << 20), device("dimm", 9 << 20), device("virtio-mem", 4096)];
    let says = answers(&format!("{{\"return\": [{}], \"id\": 2}}\r\n", devices.join(", ")));
    let monitor = Scripted::start(says, Afterwards::Stays);
    let mut qmp = monitor.connect().await.unwrap();
    assert_eq!(qmp.virtio_mem_bytes().await.unwrap(), (3 << 20) + 4096);
}

#[tokio::test]
async fn other_protocols_are_reported_as_not_qmp() {
    for says in ["HTTP/1.1 400 Bad Request\r\n\r\n", "{}\n", "\n", "[[[[\n"] {
        let error = Scripted::start(says, Afterwards::Stays).connect().await.unwrap_err();
        assert!(matches!(error, ForeignError::Strange { .. }), "{says}: {error}");
    }
    let error = Scripted::start("{\"QMP\"", Afterwards::Closes).connect().await.unwrap_err();
    assert!(matches!(error, ForeignError::Broken { .. }), "{error}");
}

#[tokio::test]
async fn endless_lines_and_endless_events_come_to_an_end() {
    let mut endless = answers("").into_bytes();
    endless.resize(LINE_BYTES_MAX * 2, b'x');
    let events = "{\"event\": \"X\"}\n".repeat(LINES_MAX + 1);
    for says in [endless, answers(&events).into_bytes()] {
        let mut qmp = Scripted::start(says, Afterwards::Stays).connect().await.unwrap();
        let error = qmp.run_state().await.unwrap_err();
        assert!(matches!(error, ForeignError::Strange { .. }), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_monitor_is_busy_at_first_and_hung_later() {
    let error = Scripted::start("", Afterwards::Stays).connect().await.unwrap_err();
    assert!(matches!(error, ForeignError::Taken { .. }), "{error}");
    let mut qmp = Scripted::start(answers(""), Afterwards::Stays).connect().await.unwrap();
    let error = qmp.run_state().await.unwrap_err();
    assert!(matches!(&error, ForeignError::Slow { question, .. } if question == "query-status"));
}

#[tokio::test]
async fn a_socket_of_another_process_is_refused() {
    let monitor = Scripted::start(answers(""), Afterwards::Stays);
    let error = Qmp::connect(&monitor.socket, 1, PATIENCE).await.unwrap_err();
    assert!(matches!(error, ForeignError::Elsewhere { pid: 1, .. }), "{error}");
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
}

#[tokio::test]
async fn a_missing_listener_is_unreachable() {
    let error = Qmp::connect(Path::new("/nowhere/qmp"), 1, PATIENCE).await.unwrap_err();
    assert!(matches!(error, ForeignError::Unreachable { .. }), "{error}");
}
