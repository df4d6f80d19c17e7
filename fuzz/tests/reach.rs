//! Checks that the fuzz targets reach their code: input that the first checks reject tests nothing
//! behind them.

use std::cell::Cell;

use arbitrary::{Arbitrary, Unstructured};
use fuzz::arrival::{self, Arrival};
use fuzz::certificate::{self, Text};
use fuzz::driver::{
    self, BalloonRequest, ConfigScript, Copier, Damaged, DiskRequest, Fill, MsixScript, NetRequest,
    Network, Operator, Program, Reach, RegisterScript, Script, VsockRequest,
};
use fuzz::file::{self, Encoded, Line, SavedGuest, TemplateFile};
use fuzz::host_device::{self, HostDevice, SeenReach};
use fuzz::hot_plug::{self, BusReach, BusScript};
use fuzz::peer::{self, PageStream};
use fuzz::seed::{self, Documents};
use vmm_core::DeviceConfig;
use vmm_core::virtio::balloon::FreePages;

/// Number of inputs to try.
const INPUTS: u64 = 400;
/// Number of inputs of those that make virtual machines.
const MACHINES: u64 = 40;

type Disk = Script<DiskRequest, Copier>;
type Net = Script<NetRequest, Network>;
type Vsock = Script<VsockRequest, Program>;

/// The sum of `run` over random inputs.
fn reached<T>(run: impl Fn(T) -> u64) -> u64
where
    T: for<'a> Arbitrary<'a>,
{
    reached_by(INPUTS, run)
}

/// As [`reached`], over so many inputs.
fn reached_by<T>(inputs: u64, run: impl Fn(T) -> u64) -> u64
where
    T: for<'a> Arbitrary<'a>,
{
    (1..=inputs)
        .filter_map(|seed| T::arbitrary_take_rest(Unstructured::new(&noise(seed))).ok())
        .map(run)
        .sum()
}

fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(step).take(1024).collect()
}

fn answered(reach: Reach) -> u64 {
    reach.answered
}

#[test]
fn every_device_answers_requests() {
    let alone = |config: &DeviceConfig| driver::alone(config);
    let rng = |script: Script<Fill>| answered(driver::run(alone(&DeviceConfig::Rng), &script));
    let balloon = |script: Script<BalloonRequest, Operator>| {
        answered(driver::run(alone(&DeviceConfig::Balloon(FreePages::Reported)), &script))
    };
    let disk = |script: Script<DiskRequest>| answered(driver::run(alone(&driver::disk()), &script));
    let net = |script: Net| answered(driver::run(driver::network(), &script));
    let vsock = |script: Vsock| answered(driver::run(driver::sockets(), &script));
    let seed = |script: Script<DiskRequest>| answered(driver::run(alone(&driver::seed()), &script));
    let image = |damaged: &Damaged| answered(driver::image(damaged));
    let on_raw = |damaged: Damaged| if damaged.is_on_raw_file() { image(&damaged) } else { 0 };
    let on_image = |damaged: Damaged| if damaged.is_on_image() { image(&damaged) } else { 0 };
    let (raw, other) = (reached(on_raw), reached(on_image));
    for (device, count) in [
        ("rng", reached(rng)),
        ("balloon", reached(balloon)),
        ("disk", reached(disk)),
        ("seed", reached(seed)),
        ("image", reached(|damaged: Damaged| image(&damaged))),
        ("image on another file", raw + other),
        ("net", reached(net)),
        ("vsock", reached(vsock)),
    ] {
        assert!(count > INPUTS / 4, "{device}: {count} requests answered in {INPUTS} scripts");
    }
    // A quarter of the scripts is for each.
    for (base, count) in [("a raw file", raw), ("an image", other)] {
        assert!(
            count > INPUTS / 16,
            "image on {base}: {count} requests answered in {INPUTS} scripts"
        );
    }
}

#[test]
fn what_the_guest_sends_comes_through() {
    let frames = reached(|script: Net| driver::run(driver::network(), &script).came_through);
    assert!(frames > INPUTS / 10, "{frames} frames");
    let copied = reached(|script: Disk| driver::run(driver::copied_disk(), &script).came_through);
    assert!(copied > 0, "nothing is copied");
    // A connection takes more steps than random inputs make; the fuzzer finds them.
    let talk = driver::run(driver::sockets(), &driver::conversation(1000));
    let welcome = "OK 1073741824\n".len() as u64;
    assert_eq!(talk.came_through, 1000 + welcome);
}

#[test]
fn devices_move() {
    let moved = reached(|script: RegisterScript| driver::run_registers(&script).moved);
    assert!(moved > INPUTS, "{moved}");
}

#[test]
fn functions_move_and_interrupt() {
    let relocated = reached(|script: ConfigScript| driver::run_config(&script).relocated);
    assert!(relocated > INPUTS / 10, "{relocated} moved in the guest's memory");
    let moved = reached(|script: ConfigScript| driver::run_config(&script).moved);
    assert!(moved > INPUTS, "{moved} moved to another host");
    let pending = reached(|script: MsixScript| driver::run_msix(&script).pending);
    assert!(pending > INPUTS / 10, "{pending} interrupts were pending");
}

#[test]
fn devices_come_and_go() {
    let all = Cell::new(BusReach::default());
    let inserted = reached_by(MACHINES, |script: BusScript| {
        let (before, own) = (all.get(), hot_plug::run(&script));
        let (taken, moved) = (before.taken + own.taken, before.moved + own.moved);
        all.set(BusReach { taken, moved, ..before });
        own.inserted
    });
    let BusReach { taken, moved, .. } = all.get();
    assert!(inserted > MACHINES, "{inserted} attached");
    assert!(taken > MACHINES / 4, "{taken} let go of");
    assert!(moved > MACHINES / 4, "{moved} moved");
}

#[test]
fn devices_of_the_host_are_seen() {
    let of = |count: fn(&SeenReach) -> u64| {
        reached(|device: HostDevice| count(&host_device::see(&device)))
    };
    let [possible, passed_on, decoded] =
        [of(|reach| reach.possible), of(|reach| reach.passed_on), of(|reach| reach.decoded)];
    assert!(possible > INPUTS / 20, "{possible} devices that a guest can have");
    assert!(passed_on > INPUTS / 20, "{passed_on} bytes of devices");
    assert!(decoded > INPUTS / 20, "{decoded} addresses");
}

#[test]
fn what_a_peer_says_is_understood_at_times() {
    let frames = reached(|frames: PageStream| peer::pages(&frames));
    assert!(frames > INPUTS / 4, "{frames} page frames");
    // Messages without content: a kind, and the number of a variant. The fuzzer has to find the
    // others.
    let bodies = (0..=u8::MAX).flat_map(|kind| (0..8).map(move |variant| [kind, variant, 0, 0, 0]));
    let messages: u64 = bodies.filter_map(|body| peer::messages(&body).ok()).sum();
    assert!(messages >= 4, "{messages} messages");
    let arrived = reached(|arrival: Arrival| arrival::arrive(&arrival).resumed);
    assert!(arrived > INPUTS / 10, "{arrived} guests");
    let early = reached(|arrival: Arrival| arrival::arrive(&arrival).early);
    assert!(early > INPUTS / 20, "{early} guests before their memory");
}

#[test]
fn files_are_understood_at_times() {
    let guests = reached(|saved: SavedGuest| file::saved_guest(&saved).into());
    let states = reached(|both: (Encoded, Encoded)| file::shape_and_state(&both));
    assert!(guests + states > INPUTS / 20, "{guests} saved guests, {states} shapes and states");
    let templates = reached(|template: TemplateFile| file::template(&template).into());
    assert!(templates > INPUTS / 100, "{templates} templates");
    assert!(!file::record(&[Line::Checked(b"{}".to_vec())]));
    let certificates = reached(|text: Text| certificate::read(&text));
    assert!(certificates > INPUTS / 20, "{certificates} requests and certificates");
    let documents = reached(|documents: Documents| seed::seed(&documents));
    assert!(documents > INPUTS / 20, "{documents} documents");
}
