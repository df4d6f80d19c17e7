//! Tests of a guest's process.

use vmm_core::boot::BootSource;
use vmm_core::memory::MissingPages;
use vmm_core::workload::WorkloadParams;
use vmm_core::{VmOptions, VmShape};

use super::*;
use crate::guest::console::Console;
use crate::guest::machine::Machine;

#[tokio::test]
async fn a_machine_that_waits_for_a_page_does_not_keep_its_process() {
    let (folder, state) = StateDir::temporary();
    let name: GuestName = "web".parse().unwrap();
    let process = GuestProcess::new(&state, name.clone(), Uuid::nil(), Handle::current());
    let shape = VmShape::for_host(64 << 20, 1).unwrap();
    let console = Console::log(folder.path().join("console.log"));
    let options = VmOptions::default();
    let machine = Machine::create(name, Uuid::nil(), &shape, &options, &console).unwrap();
    let machine = Arc::new(machine);
    process.machine.set(Arc::clone(&machine)).unwrap();
    let faults = MissingPages::open().expect("this test needs /dev/userfaultfd, or root");
    let ram = machine.vm().ram();
    let missing = ram.follow(faults).unwrap();
    missing.clear(&vec![u64::MAX; ram.chunks()]).unwrap();
    let booting = Arc::clone(&machine);
    let source = BootSource::Workload(WorkloadParams::default());
    let waits = tokio::task::spawn_blocking(move || booting.vm().boot(&source));
    missing.wait(Some(Duration::from_secs(60))).unwrap();
    assert!(!missing.wanted().unwrap().is_empty(), "the machine waits for no page");
    let ended = tokio::time::timeout(Duration::from_secs(60), process.shut_down()).await;
    let still_waits = !waits.is_finished();
    missing.end().unwrap();
    drop(waits.await);
    assert!(ended.is_ok() && still_waits);
}

#[tokio::test]
async fn a_guest_that_does_not_arrive_is_still_known_to_have_moved() {
    let (_folder, state) = StateDir::temporary();
    let name: GuestName = "web".parse().unwrap();
    let process = GuestProcess::new(&state, name.clone(), Uuid::nil(), Handle::current());
    state.prepare_guest(&name, Uuid::nil()).unwrap();
    let how = || state.ended().read(&name).map(|ended| ended.how);
    let fails = Ending::NotArrived { cause: "no memory".to_owned() };
    process.remember(&fails).unwrap();
    assert_eq!(how(), Some(How::Discarded));
    process.remember(&Ending::Moved { destination: "host-b".to_owned() }).unwrap();
    process.remember(&fails).unwrap();
    assert_eq!(how(), Some(How::Moved));
    process.remember(&Ending::Asked).unwrap();
    assert_eq!(how(), Some(How::Destroyed));
}

#[tokio::test]
async fn a_panicking_save_frees_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::new(folder.path()).unwrap();
    let name = "web".parse().unwrap();
    let process = GuestProcess::new(&state, name, Uuid::nil(), Handle::current());
    let theirs = Arc::clone(&process);
    let broken = tokio::task::spawn_blocking(move || {
        let saving = Saving::begin(&theirs, &mut theirs.occupation());
        assert!(matches!(*theirs.occupation(), Occupation::Saving(_)));
        let _saving = saving;
        panic!("broken on purpose");
    });
    assert!(broken.await.unwrap_err().is_panic());
    assert!(matches!(*process.occupation(), Occupation::None));
    process.shut_down().await;
}
