//! The file of a policy: TOML.

use toml::de::DeValue;

use super::preset::Preset;
use super::rule::{DomainRule, GuestRule};
use super::sections::{HostPolicy, HugePolicy, MergePolicy, Policy, PoolPolicy, VerifyPolicy};
use crate::settings::{self, Fault, Fields, SettingsError};
use crate::units::{MIB, Share, Size, Span, parse_size, shortened};

/// The most `[[guest]]` tables.
pub const RULES_MAX: usize = 1024;

impl Policy {
    /// Reads `text`, the content of the file that is called `file_name` in messages.
    ///
    /// All is optional: `preset`, `goal`, `actuators`, the tables `[host]`, `[balloon]`, `[pain]`,
    /// `[merge]`, `[huge]`, `[pools]`, `[verify]`, and `[[guest]]`. `[[schedule]]` is left to who
    /// reads schedules.
    ///
    /// # Errors
    /// With file, line and field: what is no TOML, has unknown fields, values of another kind or
    /// out of range, or such that contradict each other.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, SettingsError> {
        settings::read(text, file_name, read)
    }
}

fn read(mut fields: Fields<'_, '_>) -> Result<Policy, Fault> {
    let preset: Option<Preset> = fields.text("preset", str::parse)?;
    let mut policy = preset.unwrap_or_default().policy();
    if let Some(goal) = fields.text("goal", str::parse)? {
        policy.goal = goal;
    }
    if let Some(actuators) = fields.texts("actuators", str::parse)? {
        policy.actuators = actuators.into_iter().collect();
    }
    read_host(fields.section("host")?, &mut policy.host)?;
    read_balloon(fields.section("balloon")?, &mut policy)?;
    read_pain(fields.section("pain")?, &mut policy)?;
    let (mut merge, mut huge) = (fields.section("merge")?, fields.section("huge")?);
    read_merge(&mut merge, &mut policy.merge)?;
    read_huge(&mut huge, &mut policy.huge)?;
    check_written(&merge, &huge, &policy)?;
    read_pools(fields.section("pools")?, &mut policy.pools)?;
    read_verify(fields.section("verify")?, &mut policy.verify)?;
    for rule in fields.sections("guest", RULES_MAX)? {
        policy.guests.push(read_rule(rule)?);
    }
    fields.get("schedule");
    fields.finish()?;
    Ok(policy)
}

fn read_host(mut it: Fields<'_, '_>, host: &mut HostPolicy) -> Result<(), Fault> {
    it.share("amber-below", 0.0..=0.9, &mut host.amber_below)?;
    it.share("red-below", 0.0..=0.9, &mut host.red_below)?;
    it.share("red-stall", 0.001..=1.0, &mut host.red_stall)?;
    it.share("hysteresis", 0.0..=0.2, &mut host.hysteresis)?;
    it.share("cow-reserve", 0.0..=1.0, &mut host.cow_reserve)?;
    let levels = [("red-below", host.red_below), ("amber-below", host.amber_below)];
    it.upwards(&levels, Share)?;
    it.finish()
}

fn read_balloon(mut it: Fields<'_, '_>, policy: &mut Policy) -> Result<(), Fault> {
    let balloon = &mut policy.balloon;
    it.share("reserve", 0.0..=1.0, &mut balloon.reserve)?;
    it.size("reserve-min", &mut balloon.reserve_min_bytes)?;
    it.share("floor", 0.05..=1.0, &mut balloon.floor)?;
    it.share("step", 0.001..=0.5, &mut balloon.step)?;
    it.size("step-max", &mut balloon.step_max_bytes)?;
    if let Some(factor) = it.whole("red-factor", 1..=16)? {
        balloon.red_factor = factor;
    }
    it.share("dead-band", 0.0..=0.5, &mut balloon.dead_band)?;
    it.size("dead-band-min", &mut balloon.dead_band_min_bytes)?;
    it.time("fast", 1..=3600, &mut balloon.fast)?;
    it.time("slow", 1..=86_400, &mut balloon.slow)?;
    it.time("cooldown", 10..=86_400, &mut balloon.cooldown)?;
    it.time("stuck-after", 5..=3600, &mut balloon.stuck_after)?;
    it.share("idle-tax", 0.0..=0.99, &mut balloon.idle_tax)?;
    it.time("turns-within", 60..=86_400, &mut balloon.turns_within)?;
    it.upwards(&[("fast", balloon.fast), ("slow", balloon.slow)], Span)?;
    it.finish()
}

fn read_pain(mut it: Fields<'_, '_>, policy: &mut Policy) -> Result<(), Fault> {
    let pain = &mut policy.pain;
    if let Some(rate) = it.number("allocation-stalls", 0.0..=1e9)? {
        pain.allocation_stalls_per_s = rate;
    }
    it.rate("direct-reclaim", &mut pain.direct_reclaim_bytes_per_s)?;
    if let Some(rate) = it.number("major-faults", 0.0..=1e9)? {
        pain.major_faults_per_s = rate;
    }
    it.rate("swapping", &mut pain.swapping_bytes_per_s)?;
    it.time("stale-after", 5..=3600, &mut pain.stale_after)?;
    it.finish()
}

fn read_merge(it: &mut Fields<'_, '_>, merge: &mut MergePolicy) -> Result<(), Fault> {
    it.share("split-share", 0.016..=1.0, &mut merge.split_share)?;
    it.share("join-share", 0.016..=1.0, &mut merge.join_share)?;
    it.share("leave-share", 0.0..=1.0, &mut merge.leave_share)?;
    it.share("cold-written", 0.0..=1.0, &mut merge.cold_written)?;
    if let Some(activity) = it.text("activity", str::parse)? {
        merge.activity = activity;
    }
    it.time("survey-age", 10..=86_400, &mut merge.survey_age)?;
    it.share("cpu", 0.001..=1.0, &mut merge.cpu)?;
    it.time("cpu-time", 1..=86_400, &mut merge.cpu_time)?;
    if let Some(pages) = it.whole("pages-per-second", 100..=10_000_000)? {
        merge.pages_per_s = u64::from(pages);
    }
    it.time("window", 10..=86_400, &mut merge.window)?;
    if let Some(passes) = it.whole("passes", 2..=100)? {
        merge.passes = u64::from(passes);
    }
    it.share("flat", 0.0..=0.5, &mut merge.flat)?;
    it.time("pause", 0..=7 * 86_400, &mut merge.pause)?;
    if let Some(gain) = it.number("switch-gain", 1.0..=100.0)? {
        merge.switch_gain = gain;
    }
    it.time("domain-stay", 0..=7 * 86_400, &mut merge.domain_stay)?;
    it.size("gain-min", &mut merge.gain_min_bytes)?;
    let shares = [
        ("leave-share", merge.leave_share),
        ("join-share", merge.join_share),
        ("split-share", merge.split_share),
    ];
    it.upwards(&shares, Share)?;
    it.finish()
}

fn read_huge(it: &mut Fields<'_, '_>, huge: &mut HugePolicy) -> Result<(), Fault> {
    it.share("hot-written", 0.002..=1.0, &mut huge.hot_written)?;
    it.share("present", 0.0..=1.0, &mut huge.present)?;
    if let Some(chunks) = it.whole("chunks-max", 1..=65_536)? {
        huge.chunks_max = chunks;
    }
    it.finish()
}

/// What is cold enough to be merged is not hot enough for a huge page.
fn check_written(
    merge: &Fields<'_, '_>,
    huge: &Fields<'_, '_>,
    policy: &Policy,
) -> Result<(), Fault> {
    let (cold, hot) = (policy.merge.cold_written, policy.huge.hot_written);
    if cold < hot {
        return Ok(());
    }
    let (cold, hot) = (Share(cold), Share(hot));
    let what = format!("`merge.cold-written`, {cold}, is not below `huge.hot-written`, {hot}");
    let (table, key) = match huge.is_written("hot-written") {
        true => (huge, "hot-written"),
        false => (merge, "cold-written"),
    };
    Err(table.fault(key, &what))
}

fn read_pools(mut it: Fields<'_, '_>, pools: &mut PoolPolicy) -> Result<(), Fault> {
    it.size("free-min", &mut pools.free_min_bytes)?;
    pools.free_max_bytes = pools.free_max_bytes.max(pools.free_min_bytes);
    it.size("free-max", &mut pools.free_max_bytes)?;
    let bounds = [("free-min", pools.free_min_bytes), ("free-max", pools.free_max_bytes)];
    it.upwards(&bounds, Size::of)?;
    it.finish()
}

fn read_verify(mut it: Fields<'_, '_>, verify: &mut VerifyPolicy) -> Result<(), Fault> {
    it.share("enough", 0.0..=1.0, &mut verify.enough)?;
    if let Some(tries) = it.whole("tries", 1..=100)? {
        verify.tries = tries as u8;
    }
    it.time("bench", 10..=86_400, &mut verify.bench)?;
    it.finish()
}

fn read_rule(mut it: Fields<'_, '_>) -> Result<GuestRule, Fault> {
    let rule = GuestRule {
        name: it.text("name", str::parse)?,
        labels: it.texts("label", str::parse)?.unwrap_or_default(),
        user: it.text("user", user)?,
        min_bytes: it.text("min", parse_size)?,
        max_bytes: it.text("max", limit)?,
        priority: it.whole("priority", 1..=10_000)?,
        merge_domain: read_domain(&mut it)?,
        take: it.flag("take")?,
        optimize: it.flag("optimize")?,
        actuators: it.texts("actuators", str::parse)?.map(|all| all.into_iter().collect()),
    };
    if let (Some(min), Some(max)) = (rule.min_bytes, rule.max_bytes) {
        it.upwards(&[("min", min), ("max", max)], Size::of)?;
    }
    it.finish()?;
    Ok(rule)
}

/// The name or number of a user.
fn user(text: &str) -> Result<String, String> {
    match text.is_empty() || text.len() > 256 {
        true => {
            Err("the name or the number of a user, as in \"libvirt-qemu\" or \"64055\"".to_owned())
        }
        false => Ok(text.to_owned()),
    }
}

/// The most that a guest may have. With less than this no kernel runs, and a unit is likely to be
/// missing.
fn limit(text: &str) -> Result<u64, String> {
    let least = 4 * MIB;
    match parse_size(text)? {
        bytes if bytes >= least => Ok(bytes),
        _ => Err(format!("`{}` is less than {}", shortened(text), Size::of(least))),
    }
}

/// A name, or `false` for none.
fn read_domain(it: &mut Fields<'_, '_>) -> Result<Option<DomainRule>, Fault> {
    let key = "merge-domain";
    match it.get(key).map(|value| value.get_ref()) {
        None => Ok(None),
        Some(DeValue::Boolean(false)) => Ok(Some(DomainRule::Own)),
        Some(DeValue::String(name)) if (1..=64).contains(&name.len()) => {
            Ok(Some(DomainRule::Named(name.to_string())))
        }
        Some(_) => Err(it.fault(key, "is a name of 1 to 64 bytes in quotes, or false for none")),
    }
}
