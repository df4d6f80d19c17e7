//! Surveys of guests' pages, from a guest's API to the gain of merging single chunks.

use memopt::survey::Digests;
use serde_json::{Value, json};

use crate::density::{RUN_PATIENCE, following};
use crate::metrics::{scrape, value};
use support::checks::{await_life, cost, memory_is_intact, nothing_left_behind, one_intact_copy};
use support::ksm::{KsmTurn, marked_and_huge, merged_pages};
use support::{CRAWL, Guest, GuestPlan, Host, Migration, Pair, ask, wait};

/// Pages of each guest here; the workload has nearly all of them.
const PAGES: u64 = 64 << 8;

fn start(host: &Host, name: &str, domain: &str, dirty_rate: u32) -> Guest {
    let options = ["--merge-domain", domain].map(str::to_owned).into();
    let plan = GuestPlan { name: name.to_owned(), options, dirty_rate, ..GuestPlan::default() };
    Guest::start(host, &plan)
}

fn request(cpu_share: f64) -> Value {
    json!({ "seed": u64::MAX - 5, "capacity": 65_536, "bits": 0, "cpu_share": cpu_share })
}

fn begin(guest: &Guest, cpu_share: f64) -> Result<Value, String> {
    guest.request("POST", "/v1/guest/survey", Some(&request(cpu_share))).success()
}

/// Begins a survey that has KVM log the pages written in its interval.
fn begin_logged(guest: &Guest) {
    let mut request = request(1.0);
    request["activity"] = json!("dirty-log");
    guest.request("POST", "/v1/guest/survey", Some(&request)).success().expect("it begins");
}

/// Waits until the survey has ended, successfully or not.
fn await_end(guest: &Guest) -> Value {
    wait::until("the look has ended", || {
        let status = guest.get("/v1/guest/survey")?;
        let has_ended = status["state"] == "failed" || status["state"] == "done";
        if has_ended { Ok(status) } else { Err(status.to_string()) }
    })
}

/// Waits until another operation on the guest has cancelled the survey.
///
/// # Errors
/// If the survey was complete before.
fn called_off(guest: &Guest) -> Result<(), Value> {
    let status = await_end(guest);
    if status["state"] == "done" {
        return Err(status["state"].clone());
    }
    assert!(status["error"].to_string().contains("cancelled"), "{status}");
    Ok(())
}

fn survey_digests(guest: &Guest) -> Digests {
    begin(guest, 1.0).expect("it begins");
    await_digests(guest)
}

fn await_digests(guest: &Guest) -> Digests {
    let status = await_end(guest);
    assert_eq!(status["state"], "done", "{status}");
    println!("{}: {} pages in {} ms of CPU time", guest.name(), status["pages"], status["cpu_ms"]);
    serde_json::from_value(status["digests"].clone()).expect("a table")
}

/// Rows: index, present, zeros, duplicates, equal to the template, written, flags.
fn chunks(guest: &Guest, domain: &Digests) -> Vec<[u64; 7]> {
    let body = json!({ "domain": domain });
    let found = guest.request("PUT", "/v1/guest/survey", Some(&body)).success().expect("chunks");
    assert_eq!(found["reports_huge_pages"], true, "these tests need Linux 6.7");
    serde_json::from_value(found["chunks"].clone()).expect("rows of seven numbers")
}

#[test]
fn a_survey_reports_shared_and_written_pages() {
    // ksmd would split the guest's huge pages meanwhile.
    let _turn = KsmTurn::take();
    let pair = Pair::without_nodes();
    let guests = [start(&pair.a, "one", "shop", 2000), start(&pair.a, "two", "shop", 2000)];
    let tables = [survey_digests(&guests[0]), survey_digests(&guests[1])];
    let mut domain = tables[0].clone();
    domain.merge(&tables[1]).expect("of one seed");

    let alone = chunks(&guests[0], &tables[0]);
    let together = chunks(&guests[0], &domain);
    let sum = |rows: &[[u64; 7]], column: usize| rows.iter().map(|row| row[column]).sum::<u64>();
    assert!(sum(&together, 1) > PAGES * 7 / 8, "{together:?}");
    assert!(sum(&alone, 3) < PAGES / 16, "it has hardly a page twice: {alone:?}");
    let huge = together.iter().filter(|row| row[6] & 1 != 0).count();
    assert!(huge >= 16, "its memory is of huge pages, and stays so: {together:?}");
    // All pages except zeros and the 8 MiB that each guest keeps writing to.
    assert!(sum(&together, 3) > PAGES / 2, "{together:?}");
    assert!(sum(&together, 2) + sum(&together, 3) > PAGES * 3 / 4, "{together:?}");
    wait::until("8 MiB are seen to be written to", || {
        let rows = chunks(&guests[0], &survey_digests(&guests[0]));
        let hot = rows.iter().filter(|row| row[5] >= 32).count();
        assert!(hot <= 6, "{rows:?}");
        wait::holds(hot >= 3, rows)
    });
    assert!(together.iter().all(|row| row[6] & 2 != 0), "all may be merged: {together:?}");
    for guest in &guests {
        await_life(guest);
        memory_is_intact(guest);
    }
    nothing_left_behind(&pair.hosts());
}

#[test]
fn kvms_log_reports_the_few_written_pages_that_samples_miss() {
    let pair = Pair::without_nodes();
    let options = ["--write-order", "random"].map(str::to_owned).into();
    let plan = GuestPlan { options, dirty_rate: 40, ..GuestPlan::default() };
    let guest = Guest::start(&pair.a, &plan);
    await_life(&guest);
    // A survey sees one page in 50 of the 8 MiB working set, in each of its chunks. Where KVM
    // shadows the guest's page tables, those tables and pages read next to them count as written,
    // too.
    wait::until("a look tells what it writes", || {
        begin_logged(&guest);
        let rows = chunks(&guest, &await_digests(&guest));
        let written = |is_inside: bool| {
            let of_working_set = |row: &&[u64; 7]| (2..7).contains(&row[0]) == is_inside;
            rows.iter().filter(of_working_set).map(|row| row[5]).collect::<Vec<_>>()
        };
        let (inside, outside) = (written(true), written(false));
        assert!(outside.iter().sum::<u64>() < 16, "{rows:?}");
        // On a busy machine the guest may have written less.
        let is_reported = inside.iter().filter(|pages| **pages > 0).count() >= 4
            && inside.iter().sum::<u64>() >= 25;
        wait::holds(is_reported, rows)
    });
    // The log is on for that interval only: the next survey starts it again, and so does a
    // migration.
    begin_logged(&guest);
    await_digests(&guest);
    await_life(&guest);
    memory_is_intact(&guest);
}

/// Pages that the guest does not write because it is paused would count as stable.
#[test]
fn a_survey_cancelled_by_a_short_save_resumes() {
    let _turn = KsmTurn::take();
    let pair = Pair::without_nodes();
    let guest = start(&pair.a, "one", "shop", 500);
    let file = pair.folder().join("one.save").display().to_string();
    for begin in [begin_logged, |guest: &Guest| drop(begin(guest, 1.0).expect("it begins"))] {
        wait::until("a save comes before the look is over", || {
            begin(&guest);
            wait::until("all pages were looked at", || {
                let status = guest.get("/v1/guest/survey")?;
                wait::holds(status["pages"].as_u64() >= Some(PAGES * 7 / 8), status.to_string())
            });
            pair.a.run(&["save", "one", &file, "--keep-running"]).ok();
            called_off(&guest)
        });
    }
    begin_logged(&guest);
    await_digests(&guest);
    await_life(&guest);
    memory_is_intact(&guest);
}

#[test]
fn a_guest_leaves_while_a_survey_logs_its_writes() {
    let _turn = KsmTurn::take();
    let pair = Pair::new();
    let guest = start(&pair.a, "one", "shop", 500);
    wait::until("it leaves before the look is over", || {
        begin_logged(&guest);
        let migration = Migration::start(&pair.a, "one", &pair.b, &CRAWL);
        migration.await_phase("precopy");
        let is_called_off = called_off(&guest);
        pair.a.run(&["cancel", "one"]).ok();
        migration.finish().cancelled();
        is_called_off
    });
    begin_logged(&guest);
    Migration::run(&pair.a, "one", &pair.b).ok();
    let there = one_intact_copy(&pair.hosts(), "one", &pair.b);
    begin_logged(&there);
    await_digests(&there);
    nothing_left_behind(&pair.hosts());
}

#[test]
fn one_survey_runs_at_a_time_and_invalid_requests_are_refused() {
    let _turn = KsmTurn::take();
    let pair = Pair::without_nodes();
    let guest = start(&pair.a, "one", "shop", 0);
    assert_eq!(guest.get("/v1/guest/survey").expect("an answer")["state"], "none");
    for (field, value, words) in [
        ("capacity", json!(0), "1 to 65536"),
        ("capacity", json!(65_537), "1 to 65536"),
        ("bits", json!(41), "2^40"),
        ("cpu_share", json!(0), "0.01 to 1"),
        ("cpu_share", json!(1.5), "0.01 to 1"),
        ("speed", json!(1), "unknown field"),
    ] {
        let mut bad = request(1.0);
        bad[field] = value;
        let refusal = guest.request("POST", "/v1/guest/survey", Some(&bad)).success();
        assert!(refusal.as_ref().is_err_and(|error| error.contains(words)), "{refusal:?}");
    }
    begin(&guest, 0.01).expect("it begins");
    let refusal = begin(&guest, 1.0).expect_err("a survey is under way");
    assert!(refusal.contains("under way"), "{refusal}");
    let other = json!({ "domain": {
        "tag": 1, "bits": 0, "pages": 0, "zero_pages": 0, "entries": [],
    } });
    let refusal = guest.request("PUT", "/v1/guest/survey", Some(&other)).success();
    assert!(refusal.expect_err("it is not done").contains("no findings"));
}

#[test]
fn a_survey_is_cancelled_when_the_guest_leaves_and_restarts_when_it_stays() {
    let _turn = KsmTurn::take();
    let pair = Pair::new();
    let guest = start(&pair.a, "one", "shop", 500);
    begin(&guest, 0.01).expect("it begins");
    let migration = Migration::start(&pair.a, "one", &pair.b, &CRAWL);
    migration.await_phase("precopy");
    called_off(&guest).expect("it takes minutes");
    let refusal = begin(&guest, 1.0).expect_err("it is being migrated");
    assert!(refusal.contains("migrated"), "{refusal}");
    pair.a.run(&["cancel", "one"]).ok();
    migration.finish().cancelled();
    let table = survey_digests(&guest);
    let other: Digests = serde_json::from_value(json!({
        "tag": 1, "bits": 0, "pages": 0, "zero_pages": 0, "entries": [],
    }))
    .expect("a table");
    let body = json!({ "domain": other });
    let refusal = guest.request("PUT", "/v1/guest/survey", Some(&body)).success();
    assert!(refusal.expect_err("of others").contains("another merge domain"));
    assert!(!chunks(&guest, &table).is_empty());
}

/// Merges what is worth merging, and leaves balloons alone.
const POLICY: &str = r#"
goal = "max density"
actuators = ["merge", "huge"]
[merge]
gain-min = "4MiB"
cpu = "60%"
window = "10m"
"#;

#[test]
fn equal_idle_pages_are_merged_and_written_ones_stay_huge() {
    let turn = KsmTurn::take();
    let pair = following(POLICY);
    let shop = [start(&pair.a, "one", "shop", 2000), start(&pair.a, "two", "shop", 2000)];
    let bank = start(&pair.a, "other", "bank", 0);

    let plan = pair.a.run(&["density", "plan"]).ok().stdout;
    assert!(plan.contains("not surveyed recently"), "nobody has looked yet: {plan}");
    let plan = pair.a.run(&["density", "plan", "--survey"]).ok().stdout;
    assert!(!plan.contains("not surveyed recently"), "{plan}");
    no_guest_is_merged_with_a_foreign_process(&pair.a);
    let run = pair.a.run(&["density", "apply", "--json"]).ok().json();
    let steps = run["steps"].as_array().expect("a list");
    let of_kind = |kind: &str| -> Vec<&Value> {
        steps.iter().filter(|step| step["action"]["action"]["kind"] == kind).collect()
    };
    let taken_apart = of_kind("unmerge");
    assert_eq!(taken_apart.len(), 2, "each one's working set: {run:#}");
    let window = of_kind("drive-ksm");
    assert_eq!(window.len(), 1, "{run:#}");
    assert!(window[0]["expected_bytes"].as_i64() > Some(30 << 20), "{run:#}");
    assert!(window[0]["verified_bytes"].as_i64() > Some(30 << 20), "{run:#}");
    let why = "all memory was scanned, and the profit no longer rises";
    assert_eq!(of_kind("stop-ksm")[0]["action"]["reason"], why, "{run:#}");

    let page = scrape(&pair.a);
    assert_eq!(value(&page, "lighter_ksm_windows_total", &[("end", "flat")]), Some(1.0), "{page}");
    assert!(value(&page, "lighter_density_surveys_total", &[]) >= Some(3.0), "{page}");
    let zeros = [("guest", "one"), ("finding", "zero")];
    assert!(value(&page, "lighter_density_guest_surveyed_bytes", &zeros) > Some(0.0), "{page}");
    assert_eq!(merged_pages(bank.pid()), 0, "it is of another domain");
    for guest in &shop {
        let (marked, huge) = marked_and_huge(guest.pid());
        assert!((40 << 20..60 << 20).contains(&marked), "{marked} bytes may be merged");
        assert!(huge >= 6 << 20, "{huge} bytes are huge: the working set is 8 MiB");
        assert!(merged_pages(guest.pid()) > 4 << 10);
    }
    for guest in shop.iter().chain([&bank]) {
        await_life(guest);
        memory_is_intact(guest);
    }
    assert!(turn.is_as_before(), "ksmd is as it was");
    nothing_left_behind(&pair.hosts());
}

/// Asserts that a run merges nothing while there is a guest that the node of `host` does not know
/// and whose pages ksmd could merge with those of any other.
fn no_guest_is_merged_with_a_foreign_process(host: &Host) {
    let elsewhere = Pair::without_nodes();
    let stranger = start(&elsewhere.a, "stranger", "shop", 0);
    let run = host.run(&["density", "apply", "--json"]).ok().json();
    let steps = run["steps"].as_array().expect("a list");
    let is_merging = |kind: &Value| kind == "merge" || kind == "drive-ksm";
    assert!(!steps.iter().any(|step| is_merging(&step["action"]["action"]["kind"])), "{run:#}");
    let plan = host.run(&["density", "plan"]).ok().stdout;
    let named = format!("process {} (", stranger.pid().0);
    assert!(plan.contains(&named) && plan.contains("could share pages with it"), "{plan}");
}

#[test]
fn a_foreign_process_between_plan_and_window_stops_only_this_window() {
    let _turn = KsmTurn::take();
    let pair = following(POLICY);
    let guests = ["one", "two"].map(|name| start(&pair.a, name, "shop", 0));
    let elsewhere = Pair::without_nodes();
    let stranger = start(&elsewhere.a, "stranger", "shop", 0);
    let lets_be_merged = |treatment: &str| {
        let body = json!({ "treatment": treatment });
        stranger.request("PUT", "/v1/guest/memory", Some(&body)).success().expect("it is done");
    };
    lets_be_merged("unmerge");
    // The guests' pages have not been surveyed yet: the run does so after its first plan.
    let socket = pair.a.state_dir().join("node.sock");
    let begun = ask(&socket, "POST", "/v1/density/runs", Some(&json!({})));
    let begun = begun.expect("an answer").success().expect("a run")["run"].to_string();
    lets_be_merged("merge");
    let run = wait::within(RUN_PATIENCE, "the run is over", || {
        let run = pair.a.run(&["density", "history", &begun, "--json"]).ok().json();
        if run["state"] == "done" { Ok(run) } else { Err(run) }
    });
    let steps = run["steps"].as_array().expect("a list");
    let window = steps.iter().find(|step| step["action"]["action"]["kind"] == "drive-ksm");
    let window = window.unwrap_or_else(|| panic!("no window was planned: {run:#}"));
    let named = format!("process {} (", stranger.pid().0);
    let error = window["error"].as_str().expect("a reason");
    assert!(error.contains(&named) && error.contains("could share pages"), "{run:#}");
    assert_eq!(guests.each_ref().map(|guest| merged_pages(guest.pid())), [0, 0]);

    lets_be_merged("unmerge");
    let run = pair.a.run(&["density", "apply", "--json"]).ok().json();
    let steps = run["steps"].as_array().expect("a list");
    let window = steps.iter().find(|step| step["action"]["action"]["kind"] == "drive-ksm");
    let verified = window.and_then(|window| window["verified_bytes"].as_i64());
    assert!(verified > Some(30 << 20), "{run:#}");
}

/// Number of chunks of a guest to which the plan applies action `kind`.
fn chunks_to(plan: &Value, kind: &str, guest: &str) -> u64 {
    let steps = plan["steps"].as_array().expect("a list").iter();
    let is_meant = |action: &&Value| action["kind"] == kind && action["guest"] == guest;
    let chunks = |action: &Value| -> u64 {
        let ranges = action["chunks"].as_array().expect("a list").iter();
        ranges.filter_map(|range| range["count"].as_u64()).sum()
    };
    steps.map(|step| &step["action"]).filter(is_meant).map(chunks).sum()
}

#[test]
fn merged_memory_that_becomes_hot_is_unmerged_and_made_huge() {
    let turn = KsmTurn::take();
    let pair = following(&format!("{POLICY}activity = \"dirty-log\"\n"));
    let shop = [start(&pair.a, "one", "shop", 0), start(&pair.a, "two", "shop", 0)];
    pair.a.run(&["density", "apply"]).ok();
    let (_, huge_before) = marked_and_huge(shop[0].pid());
    assert!(huge_before < 16 << 20 && merged_pages(shop[0].pid()) > 4 << 10, "{huge_before}");

    let order = json!({ "dirty_rate_pages_per_s": 20_000, "working_set_bytes": 40 << 20 });
    shop[0].request("PUT", "/v1/guest/workload", Some(&order)).success().expect("it is steered");
    // A zero page becomes a page of its own only once it is written.
    wait::until("new looks tell that it writes", || {
        let plan = pair.a.run(&["density", "plan", "--survey", "--json"]).ok().json();
        wait::holds(chunks_to(&plan, "unmerge", "one") >= 16, plan)
    });
    // In one run or in several, depending on how quickly the pages are written.
    wait::within(
        RUN_PATIENCE,
        "the 40 MiB that it writes are huge, and the kernel may merge them no more",
        || {
            let run = pair.a.run(&["density", "apply", "--json"]).ok().json();
            let (marked, huge) = marked_and_huge(shop[0].pid());
            let is_done = huge >= 36 << 20 && marked < 32 << 20;
            if !is_done {
                pair.a.run(&["density", "plan", "--survey"]).ok();
            }
            wait::holds(is_done, (marked, huge, run))
        },
    );
    for guest in &shop {
        await_life(guest);
        memory_is_intact(guest);
    }
    assert!(turn.is_as_before(), "ksmd is as it was");
    nothing_left_behind(&pair.hosts());
}

#[test]
fn zero_pages_are_returned_without_merging_while_the_guest_writes() {
    let pair = following(&POLICY.replace("\"merge\", \"huge\"", "\"zeros\""));
    let options = ["--zero-share", "50", "--run-length", "64K"].map(str::to_owned).into();
    // Each page of the working set is written several times per survey, so that none counts as
    // stable.
    let plan = GuestPlan { options, dirty_rate: 8000, ..GuestPlan::default() };
    let guest = Guest::start(&pair.a, &plan);
    let before = cost(&pair.a, guest.name());

    let run = pair.a.run(&["density", "apply", "--json"]).ok().json();
    let step = &run["steps"][0];
    assert_eq!(step["action"]["action"]["kind"], "drop-zeros", "{run:#}");
    let planned = &run["plan"]["steps"][0]["action"]["kind"];
    assert_eq!(planned, "drop-zeros", "the plan is the one after the look: {run:#}");
    let expected = step["expected_bytes"].as_u64().expect("a size");
    assert!(expected > 20 << 20, "half of 64 MiB, less what is written: {run:#}");
    let verified = step["verified_bytes"].as_u64().expect("a size");
    assert!(verified > expected / 8 * 7 && verified < expected / 8 * 9, "{run:#}");
    let back = before - cost(&pair.a, guest.name());
    assert!(back > expected / 8 * 7, "{back} of {expected} came back: {run:#}");
    await_life(&guest);
    memory_is_intact(&guest);
    wait::until("a look finds no more zeros in what stands still", || {
        let plan = pair.a.run(&["density", "plan", "--survey"]).ok().stdout;
        wait::holds(plan.contains("it has too few zero pages"), plan)
    });

    let options = ["--zero-share", "50", "--prealloc"].map(str::to_owned).into();
    let plan = GuestPlan { name: "eager".to_owned(), options, ..GuestPlan::default() };
    let eager = Guest::start(&pair.a, &plan);
    let before = eager.pid().anonymous_bytes();
    let order = json!({ "treatment": "drop-zeros" });
    let treated = eager.request("PUT", "/v1/guest/memory", Some(&order)).success();
    let error = treated.expect("an answer")["error"].to_string();
    assert!(error.contains("preallocated"), "{error}");
    // The guest has 32 MiB of zeros. The other allocations of its process may vary slightly.
    let lost = before.saturating_sub(eager.pid().anonymous_bytes());
    assert!(lost < 1 << 20, "it keeps all, and has lost {lost} bytes");
    nothing_left_behind(&pair.hosts());
}

/// Whether the guest's process can have memory write-protected.
fn has_userfaultfd(guest: &Guest) -> bool {
    let folder = format!("/proc/{}/fd", guest.pid().0);
    let descriptors = std::fs::read_dir(folder).expect("descriptors");
    let mut targets = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    targets.any(|target| target.as_os_str() == "anon_inode:[userfaultfd]")
}

#[test]
fn a_clone_shares_with_its_template_again_while_it_writes() {
    let pair = Pair::without_nodes();
    // In a guest of zeros, the workload alternately fills and clears pages: a cleared page equals
    // the template's again.
    let options = ["--zero-share", "100"].map(str::to_owned).into();
    let plan =
        GuestPlan { name: "first".to_owned(), options, dirty_rate: 0, ..GuestPlan::default() };
    let first = Guest::start(&pair.a, &plan);
    assert!(!has_userfaultfd(&first), "only clones have one");
    let file = pair.folder().join("first.template").display().to_string();
    pair.a.run(&["template", "first", &file]).ok();
    pair.a.run(&["run", "--template", &file, "--name", "clone", "--detach"]).ok();
    let clone = pair.a.guest("clone");
    assert!(has_userfaultfd(&clone), "this test needs Linux 6.7");
    let steer = |rate: u32| {
        let order = json!({ "dirty_rate_pages_per_s": rate, "working_set_bytes": 48 << 20 });
        clone.request("PUT", "/v1/guest/workload", Some(&order)).success().expect("it is steered");
    };
    let share = || {
        let order = json!({ "treatment": "share" });
        let treated = clone.request("PUT", "/v1/guest/memory", Some(&order)).success();
        assert_eq!(treated.expect("an answer")["error"], Value::Null);
    };
    let await_writes = |pages: u64| {
        let written = |workload: &Value| workload["pages_written"].as_u64().expect("a count");
        let before = written(&clone.workload().expect("an answer"));
        clone.await_workload("it writes", |workload| written(workload) >= before + pages);
    };
    let as_in_template =
        || -> u64 { chunks(&clone, &survey_digests(&clone)).iter().map(|row| row[4]).sum() };

    steer(20_000);
    for _ in 0..8 {
        await_writes(PAGES);
        share();
        memory_is_intact(&clone);
    }
    // The number of cleared pages depends on where the workload is in its cycle.
    let before = wait::until("some of its own pages are as in the template", || {
        steer(20_000);
        await_writes(PAGES / 3);
        steer(0);
        let count = as_in_template();
        (count > PAGES / 8).then_some(count).ok_or(count)
    });
    share();
    let after = as_in_template();
    assert!(after < before / 16, "{after} of {before} pages still are");
    memory_is_intact(&clone);
    for name in ["first", "clone"] {
        pair.a.run(&["destroy", name]).ok();
    }
    nothing_left_behind(&pair.hosts());
}
