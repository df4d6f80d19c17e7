//! The backing of guest memory, from a user's view: huge pages, templates, merge domains, dirty
//! rings, CPU models.

use std::fs::File;
use std::path::Path;

use serde_json::Value;

use support::checks::{await_life, cost, guest_is_gone, memory_is_intact, one_intact_copy};
use support::ksm::{KsmTurn, merged_frames, merged_pages};
use support::{CRAWL, Exit, Guest, GuestPlan, HELD, Host, Migration, Pair, Pool, wait};

fn plan(name: &str, options: &[&str]) -> GuestPlan {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    GuestPlan { name: name.to_owned(), options, ..GuestPlan::default() }
}

fn backing(guest: &Guest) -> Value {
    guest.get("/v1/guest").expect("an answer")["backing"].clone()
}

fn shown(host: &Host, name: &str) -> Value {
    host.run(&["show", name, "--json"]).ok().json()
}

#[test]
fn a_guest_on_pool_pages_is_moved_saved_and_restored_on_pool_pages() {
    // Room for two guests of 64 MiB: one leaves while the other arrives.
    let _pool = Pool::of_2m(64);
    let pair = Pair::new();
    let free = Pool::free();
    let options = ["--hugepages", "2M", "--prealloc", "--numa-policy", "bind:0"];
    let guest = Guest::start(&pair.a, &plan("huge", &options));
    assert_eq!(Pool::free(), free - 32);
    let resident = shown(&pair.a, "huge")["resident_bytes"].as_u64();
    assert!(resident > Some(64 << 20), "huge pages count as resident: {resident:?}");
    let text = pair.a.run(&["show", "huge"]).ok().stdout;
    assert!(text.contains("2M huge pages") && text.contains("bind:0"), "{text}");

    Migration::run(&pair.a, guest.name(), &pair.b).ok();
    let arrived = one_intact_copy(&pair.hosts(), "huge", &pair.b);
    assert_eq!(backing(&arrived)["hugepages"], "2M");
    assert_eq!(backing(&arrived)["prealloc"], true);
    wait::until("the source gives its pages back", || {
        wait::holds(Pool::free() == free - 32, Pool::free())
    });

    let file = pair.folder().join("huge.lighter").display().to_string();
    pair.b.run(&["save", "huge", &file]).ok();
    guest_is_gone(&[&pair.b], "huge");
    pair.b.run(&["restore", &file, "--detach"]).ok();
    let restored = pair.b.guest("huge");
    memory_is_intact(&restored);
    assert_eq!(backing(&restored)["hugepages"], "2M");
    assert_eq!(Pool::free(), free - 32);
}

/// Migrates a guest to host b, and hands it over before most of its memory, for which it waits.
fn arrives_before_its_memory(pair: &Pair, name: &str) {
    let migration = Migration::start(&pair.a, name, &pair.b, &[CRAWL, HELD].concat());
    migration.await_phase("precopy");
    pair.a.run(&["migrate", name, "--postcopy-now"]).ok();
    migration.await_phase("postcopy");
    pair.a.run(&["migrate", name, "--set", "bandwidth=none"]).ok();
    let report = migration.finish().ok();
    assert!(report["page_waits"]["longest_seconds"].as_f64() > Some(0.0), "{report:#}");
}

#[test]
fn pages_of_the_pool_follow_their_guest() {
    let _pool = Pool::of_2m(64);
    let pair = Pair::new();
    let free = Pool::free();
    Guest::start(&pair.a, &plan("huge", &["--hugepages", "2M"]));
    arrives_before_its_memory(&pair, "huge");
    one_intact_copy(&pair.hosts(), "huge", &pair.b);
    wait::until("the source gives its pages back", || {
        wait::holds(Pool::free() >= free - 32, Pool::free())
    });

    Migration::run(&pair.b, "huge", &pair.a).ok();
    one_intact_copy(&pair.hosts(), "huge", &pair.a);
}

#[test]
fn a_host_whose_pool_is_short_refuses_before_anything_is_sent() {
    let _pool = Pool::of_2m(32);
    let pair = Pair::new();
    let guest = Guest::start(&pair.a, &plan("huge", &["--hugepages", "2M"]));
    let words = ["needs 32 huge pages of 2 MiB, and 0 of", "sysctl vm.nr_hugepages="];
    Migration::run(&pair.a, guest.name(), &pair.b).stayed(&words);
    one_intact_copy(&pair.hosts(), "huge", &pair.a);
    let second = ["run", "--name", "second", "--memory", "64M", "--hugepages", "2M", "--detach"];
    pair.a.run(&second).complains(Exit::Failed, &words);
}

#[test]
fn impossible_memory_options_are_refused_at_the_start() {
    let pair = Pair::without_nodes();
    let refused = |options: &[&str], exit: Exit, words: &[&str]| {
        let arguments = [&["run", "--name", "x", "--memory", "64M"], options].concat();
        pair.a.run(&arguments).complains(exit, words);
    };
    refused(&["--hugepages", "1G"], Exit::Failed, &["whole number of huge pages of 1 GiB"]);
    refused(&["--hugepages", "4M"], Exit::Usage, &["--hugepages", "2M or 1G"]);
    refused(&["--numa-policy", "bind:63"], Exit::Failed, &["NUMA node 63"]);
    refused(&["--cpu", "pentium"], Exit::Usage, &["`pentium`", "x86-64-v3"]);
    refused(&["--dirty-log", "ring:7"], Exit::Usage, &["power of two"]);
    let merged = ["--hugepages", "2M", "--merge-domain", "shop"];
    refused(&merged, Exit::Failed, &["cannot be merged"]);
    let missing = ["run", "--name", "x", "--template", "/nowhere/t"];
    pair.a.run(&missing).complains(Exit::Failed, &["/nowhere/t", "No such file"]);
}

#[test]
fn clones_share_their_templates_memory_and_run_independently() {
    let pair = Pair::new();
    let calm = GuestPlan { dirty_rate: 0, ..plan("first", &["--label", "role=origin"]) };
    let first = Guest::start(&pair.a, &calm);
    let file = pair.folder().join("first.template").display().to_string();
    pair.a.run(&["template", "first", &file]).ok();
    await_life(&first);
    let before = std::fs::read(&file).expect("a template");

    let names = ["one", "two", "three"];
    let alone = cost(&pair.a, "first");
    for name in names {
        pair.a.run(&["run", "--template", &file, "--name", name, "--detach"]).ok();
    }
    let clones = names.map(|name| pair.a.guest(name));
    let mut uuids: Vec<Value> = [&first, &clones[0], &clones[1], &clones[2]]
        .map(|guest| guest.get("/v1/guest").expect("an answer")["uuid"].clone())
        .into();
    uuids.dedup();
    assert_eq!(uuids.len(), 4, "each has its own");
    for clone in &clones {
        memory_is_intact(clone);
        assert_eq!(backing(clone)["from_template"], true);
    }
    // By now all guests have read all of their memory.
    let together: u64 = names.iter().map(|name| cost(&pair.a, name)).sum();
    assert!(together < 2 * alone, "three clones cost {together} bytes, one ordinary guest {alone}");

    pair.a.run(&["reset", "three"]).ok();
    clones[2].await_workload("it works again", |workload| workload["phase"] == "working");
    memory_is_intact(&clones[2]);

    Migration::run(&pair.a, "two", &pair.b).ok();
    let arrived = one_intact_copy(&pair.hosts(), "two", &pair.b);
    assert_eq!(backing(&arrived)["from_template"], false, "it arrives as ordinary memory");
    assert!(std::fs::read(&file).expect("a template") == before, "nobody writes to it");
}

#[test]
fn memory_follows_a_clone_of_a_template() {
    let pair = Pair::new();
    Guest::start(&pair.a, &plan("first", &[]));
    let file = pair.folder().join("first.template").display().to_string();
    pair.a.run(&["template", "first", &file]).ok();
    pair.a.run(&["run", "--template", &file, "--name", "clone", "--detach"]).ok();
    let clone = pair.a.guest("clone");
    clone.await_workload("it works", |workload| workload["phase"] == "working");
    assert_eq!(backing(&clone)["from_template"], true);
    let before = std::fs::read(&file).expect("a template");

    arrives_before_its_memory(&pair, "clone");

    let arrived = one_intact_copy(&pair.hosts(), "clone", &pair.b);
    assert_eq!(backing(&arrived)["from_template"], false, "it arrives as ordinary memory");
    assert!(std::fs::read(&file).expect("a template") == before, "nobody writes to it");
    memory_is_intact(&pair.a.guest("first"));
}

#[test]
fn one_merge_domain_of_a_host_is_merged_at_a_time() {
    let _turn = KsmTurn::take();
    let pair = Pair::without_nodes();
    let start =
        |name: &str, domain: &str| Guest::start(&pair.a, &plan(name, &["--merge-domain", domain]));
    let (one, two) = (start("one", "shop"), start("two", "shop"));
    let other = start("other", "bank");
    for guest in [&one, &two] {
        assert_eq!(backing(guest)["mergeable"], true);
    }
    assert_eq!(backing(&other)["mergeable"], false);
    let text = pair.a.run(&["show", "other"]).ok().stdout;
    assert!(text.contains("bank (NOT merged: guests of shop are on this host)"), "{text}");
    assert!(is_marked(&one) && !is_marked(&other));

    for name in ["one", "two", "other"] {
        pair.a.run(&["destroy", name]).ok();
        guest_is_gone(&[&pair.a], name);
    }
    assert_eq!(backing(&start("other", "bank"))["mergeable"], true, "the shop is gone");
}

/// The lock may be held by a guest's process that was compromised, or by one of an earlier version.
#[test]
fn a_held_lock_of_merge_domains_stops_no_guest_from_running_or_arriving() {
    let _turn = KsmTurn::take();
    let pair = Pair::new();
    let keep = |host: &Host| {
        let file = File::open(host.state_dir().join("merge-domain")).expect("a node has made it");
        file.lock().expect("a lock");
        file
    };
    let _kept = [&pair.a, &pair.b].map(keep);
    let guest = Guest::start(&pair.a, &plan("one", &["--merge-domain", "shop"]));
    let is_reported = |host: &Host| {
        let text = host.run(&["show", "one"]).ok().stdout;
        assert!(text.contains("shop (NOT merged: guests of an unknown domain"), "{text}");
    };
    is_reported(&pair.a);
    assert!(!is_marked(&guest));
    Migration::run(&pair.a, "one", &pair.b).ok();
    is_reported(&pair.b);
    let arrived = one_intact_copy(&pair.hosts(), "one", &pair.b);
    assert!(!is_marked(&arrived));
    pair.b.await_log(&["the lock of this host's merge domains", "exclusively"]);
}

#[test]
fn an_arrived_guest_is_merged_with_its_domain() {
    let _turn = KsmTurn::take();
    let pair = Pair::new();
    let guest = Guest::start(&pair.a, &plan("one", &["--merge-domain", "shop"]));
    assert!(is_marked(&guest));
    let _other = Guest::start(&pair.b, &plan("two", &["--merge-domain", "shop"]));
    Migration::run(&pair.a, "one", &pair.b).ok();
    let arrived = one_intact_copy(&pair.hosts(), "one", &pair.b);
    assert!(is_marked(&arrived) && backing(&arrived)["mergeable"] == true);
}

#[test]
fn the_kernel_merges_what_guests_of_a_domain_have_in_common_and_nothing_else() {
    let turn = KsmTurn::take();
    let pair = Pair::new();
    // All three have the same content, except for the 8 MiB that each keeps writing to.
    let start = |name: &str, options: &[&str]| Guest::start(&pair.a, &plan(name, options));
    let (one, two) =
        (start("one", &["--merge-domain", "shop"]), start("two", &["--merge-domain", "shop"]));
    let (other, plain) = (start("other", &["--merge-domain", "bank"]), start("plain", &[]));
    let before: u64 = ["one", "two"].map(|name| cost(&pair.a, name)).iter().sum();
    let _scan = turn.scanning();
    // At least half of 64 MiB, in either guest.
    wait::until("the shop's pages are merged", || {
        let merged = [&one, &two].map(|guest| merged_pages(guest.pid()));
        wait::holds(merged.iter().all(|pages| *pages > 8 << 10), merged)
    });
    wait::until("the host has half of it back", || {
        let after: u64 = ["one", "two"].map(|name| cost(&pair.a, name)).iter().sum();
        wait::holds(after + (32 << 20) < before, (before, after))
    });
    assert_eq!([&other, &plain].map(|guest| merged_pages(guest.pid())), [0, 0]);
    let frames = [&one, &two, &other, &plain].map(|guest| merged_frames(guest.pid()));
    // ksmd continues meanwhile, and so do the guests.
    assert!(frames[0].intersection(&frames[1]).count() > 4 << 10, "the shop's are the same frames");
    assert!(frames[2].is_empty() && frames[3].is_empty(), "nobody else's are merged");

    // The guests write while ksmd scans, and one migrates.
    for guest in [&one, &two] {
        await_life(guest);
        memory_is_intact(guest);
    }
    Migration::run(&pair.a, "two", &pair.b).ok();
    one_intact_copy(&pair.hosts(), "two", &pair.b);
    memory_is_intact(&one);
}

/// Whether ksmd may merge some of the guest's memory.
fn is_marked(guest: &Guest) -> bool {
    let smaps = format!("/proc/{}/smaps", guest.pid().0);
    let text = std::fs::read_to_string(Path::new(&smaps)).expect("a live process");
    text.lines().any(|line| line.starts_with("VmFlags:") && line.contains(" mg"))
}

#[test]
fn a_busy_guest_moves_by_dirty_rings() {
    let pair = Pair::new();
    let busy =
        GuestPlan { dirty_rate: 20_000, cpus: 2, ..plan("ring", &["--dirty-log", "ring:1024"]) };
    Guest::start(&pair.a, &busy);
    let text = pair.a.run(&["show", "ring"]).ok().stdout;
    assert!(text.contains("ring:1024"), "{text}");
    for _ in 0..2 {
        // Cancelled and started again: the dirty log must restart.
        let migration = Migration::start(&pair.a, "ring", &pair.b, &["--bandwidth", "2MB/s"]);
        migration.await_phase("precopy");
        pair.a.run(&["cancel", "ring"]).ok();
        migration.finish().cancelled();
    }
    // The guest writes as fast as a busy machine can send.
    Migration::start(&pair.a, "ring", &pair.b, &["--downtime", "10s"]).finish().ok();
    let arrived = one_intact_copy(&pair.hosts(), "ring", &pair.b);
    assert_eq!(backing(&arrived)["dirty_log"], "auto", "a matter of each host");
}

#[test]
fn a_guest_runs_as_each_cpu_model_that_its_host_can_be_and_moves() {
    let pair = Pair::new();
    let models = pair.a.run(&["cpu-models", "--json"]).ok().json();
    let models = models.as_array().expect("a list");
    assert!(models.iter().any(|model| model["name"] == "x86-64-v1"), "{models:#?}");
    for model in models {
        let name = model["name"].as_str().expect("a name");
        let missing = model["missing"].as_array().expect("a list");
        if let Some(first) = missing.first().and_then(Value::as_str) {
            let arguments = ["run", "--name", "lacking", "--cpu", name];
            pair.a.run(&arguments).complains(Exit::Failed, &[name, first, "lighter cpu-models"]);
            continue;
        }
        let guest = Guest::start(&pair.a, &plan(name, &["--cpu", name]));
        Migration::run(&pair.a, guest.name(), &pair.b).ok();
        let arrived = one_intact_copy(&pair.hosts(), name, &pair.b);
        assert_eq!(arrived.get("/v1/guest").expect("an answer")["cpu_model"], name);
    }

    let file = pair.folder().join("fleet.toml");
    std::fs::write(&file, "base = \"x86-64-v1\"\nremove = [\"rdtscp\"]").expect("a file");
    let file = file.display().to_string();
    let guest = Guest::start(&pair.a, &plan("own", &["--cpu", &file]));
    assert_eq!(guest.get("/v1/guest").expect("an answer")["cpu_model"], "fleet");
    let text = pair.a.run(&["show", "own"]).ok().stdout;
    assert!(text.contains("CPU") && text.contains("fleet"), "{text}");
}
