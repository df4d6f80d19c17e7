//! Guests with the same name, and processes that claim another guest's name.

use super::*;
use crate::foreign::make_names_unique;
use crate::situation::{Guest, Hindrance, Vmm};

/// A process of another user, with a lower PID, that claims the name of lighter's own guest `name`.
fn impostor(name: &str, of: &Guest) -> Guest {
    let (pid, hindrance) = (of.pid - 1, Some(Hindrance::Watched));
    let mut claims = [found(pid, name)];
    make_names_unique(&[of.name.clone()].into(), &mut claims);
    Guest { hindrance, vmm: Vmm::Qemu, pid, ..idle_guest(&claims[0].name, 8 * GIB, GIB) }
}

#[test]
fn a_guest_under_pressure_gets_its_memory_back_even_if_another_claims_its_name() {
    let mut ours = idle_guest("web-1", 8 * GIB, GIB);
    (balloon(&mut ours).target_bytes, balloon(&mut ours).actual_bytes) = (4 * GIB, 4 * GIB);
    let mut host = situation(50, vec![impostor("web-1", &ours), ours]);
    let (policy, mut ledger) = (Policy::default(), Ledger::default());
    let _ = round(&host, &policy, &mut ledger, &Goal::MaxDensity);
    host = later(&host, 10);
    said(&mut host.guests[1]).oom_kills = Some(1);
    let plan = round(&host, &policy, &mut ledger, &Goal::MaxDensity);
    assert_eq!(set_to(&plan, "web-1"), Some(8 * GIB), "{plan:#?}");
    assert_eq!(plan.steps.len(), 1, "only watched: {plan:#?}");
    assert_eq!(plan.steps[0].pid, Some(host.guests[1].pid));
}

#[test]
fn a_step_names_its_process() {
    let guests = vec![idle_guest("a", 8 * GIB, GIB), idle_guest("b", 8 * GIB, GIB)];
    let pids = [guests[0].pid, guests[1].pid];
    let (plan, _) = settled(&situation(10, guests), &Policy::default(), Goal::MaxDensity);
    let mut named: Vec<_> = plan.steps.iter().filter_map(|step| step.pid).collect();
    named.sort_unstable();
    assert_eq!(named, pids);
    let text = serde_json::to_string(&plan.steps).expect("JSON");
    let of_older = text.replace(&format!(",\"pid\":{}", pids[0]), "");
    assert_ne!(of_older, text);
    let read: Vec<Step> = serde_json::from_str(&of_older).expect("steps");
    assert!(read.iter().any(|step| step.pid.is_none()), "{of_older}");
}

#[test]
fn a_limit_by_name_alone_gives_advice_on_what_is_missing() {
    let text = "[[guest]]\nname = \"db\"\nmin = \"6GiB\"";
    let policy = Policy::parse(text, "f").expect("a policy");
    let guest = Guest { vmm: Vmm::Qemu, ..idle_guest("db", 8 * GIB, GIB) };
    let host = situation(10, vec![guest]);
    let (plan, _) = settled(&host, &policy, Goal::MaxDensity);
    let advice: Vec<String> = plan.advice.iter().map(ToString::to_string).collect();
    assert!(
        advice.iter().any(|it| it.starts_with("db: ") && it.contains("add `user`")),
        "{advice:?}"
    );
}
