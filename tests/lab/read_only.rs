//! A host whose file systems turn read-only, as they do when the disk below them fails.

use crate::disks::{RUN, hosts};
use crate::fixtures::{Host, Lab, holds, until};

const COMPLAINT: &str = "Read-only file system";

#[track_caller]
fn turn_read_only(host: Host<'_>) {
    host.sh("sync; echo u > /proc/sysrq-trigger").ok();
    until("the root file system is read-only", || {
        let done = host.sh("touch /var/lib/lighter/probe");
        holds(done.stderr.contains(COMPLAINT), done)
    });
}

#[test]
fn a_host_that_cannot_record_keeps_its_guests_and_takes_no_others() {
    let lab = Lab::of(2);
    let [here, there] = hosts(&lab);
    here.lighter(&format!("{RUN} web")).ok();
    there.lighter(&format!("{RUN} db")).ok();
    let both_stay = || {
        let states = [here.state_of("web"), here.state_of("db"), there.state_of("web")];
        assert_eq!(states, [Some("running".to_owned()), None, None]);
        assert_eq!(there.state_of("db").as_deref(), Some("running"));
    };
    turn_read_only(here);

    let away = format!("migrate web {} --downtime 10s", there.address());
    let hither = format!("migrate db {} --downtime 10s", here.address());
    here.lighter(&away).complains(&[COMPLAINT]);
    both_stay();
    there.lighter(&hither).complains(&[COMPLAINT]);
    both_stay();
    here.lighter("save web /var/tmp/web.lighter").complains(&[COMPLAINT]);
    here.lighter(&format!("{RUN} other")).complains(&[COMPLAINT]);
    both_stay();
    here.lighter("pause web && lighter resume web").ok();
    let shown = here.ask("web", "/v1/guest").expect("a guest");
    assert_eq!(shown["state"], "running", "{shown}");
    both_stay();

    here.sh("mount -o remount,rw /").ok();
    here.lighter(&away).ok();
    there.lighter(&hither).ok();
    assert_eq!(there.state_of("web").as_deref(), Some("running"));
    assert_eq!(here.state_of("db").as_deref(), Some("running"));
}
