//! What a soak run found: as a table, and as JSON that can be merged.

use core::fmt::Write;
use std::collections::BTreeMap;

use comfy_table::{Table, presets};
use lazytlb_sched_model::generate;
use lazytlb_sched_model::shrink::Shrunk;
use serde::{Deserialize, Serialize};

use super::Failure;

/// What results must have in common to be of the same run.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct Shape {
    pub(super) seed: u64,
    /// How many shards there are.
    pub(super) of: u64,
    pub(super) runs: u64,
    /// How many programs all shards have together, if that is the end.
    pub(super) programs: Option<u64>,
    /// Strategy, machine and memory model.
    pub(super) pairs: Vec<String>,
    pub(super) dropped: Vec<String>,
    pub(super) relaxed: Vec<String>,
}

/// How much was run under a strategy, and how much of it failed.
#[derive(Serialize, Deserialize, Clone, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct Counts {
    /// A program in a setting.
    pub(super) runs: u64,
    /// Random ones.
    pub(super) executions: u64,
    /// Steps of these.
    pub(super) steps: u64,
    /// Runs of which all executions were explored besides.
    pub(super) exhausted: u64,
    /// Runs in which something was found.
    pub(super) failed: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Counts) {
        self.runs += other.runs;
        self.executions += other.executions;
        self.steps += other.steps;
        self.exhausted += other.exhausted;
        self.failed += other.failed;
    }
}

/// What was found under a strategy: the first of its kind.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct Alarm {
    /// The program's place in the sequence, and the setting's in the list.
    pub(super) place: (u64, usize),
    pub(super) strategy: String,
    pub(super) machine: String,
    pub(super) memory: String,
    pub(super) kind: String,
    pub(super) message: String,
    /// Whether the strategy claims that this does not happen.
    pub(super) claimed: bool,
    /// How many runs showed the same.
    pub(super) runs: u64,
    /// The shrunk program.
    pub(super) litmus: String,
    pub(super) schedule: String,
}

impl Alarm {
    pub(super) fn new(seed: u64, failure: &Failure, shrunk: &Shrunk) -> Alarm {
        let (setting, verdict) = (&failure.setting, &shrunk.found.verdict);
        let mut litmus = generate::litmus(shrunk.program.clone());
        let claimed = setting.strategy.claims(setting.rules);
        litmus.about = format!(
            "Found by `lazytlb soak --seed {seed}` in program {}, and shrunk: {} under {}, which {} this machine.\n",
            failure.place.0,
            verdict.kind,
            setting.strategy,
            if claimed { "claims" } else { "does not claim" },
        );
        litmus.machines = vec![setting.rules];
        litmus.memories = vec![setting.memory];
        (litmus.dropped, litmus.relaxed) = (setting.dropped.clone(), setting.relaxed.clone());
        Alarm {
            place: failure.place,
            strategy: setting.strategy.name().into(),
            machine: setting.rules.name().into(),
            memory: setting.memory.name().into(),
            kind: verdict.kind.name().into(),
            message: verdict.message.clone(),
            claimed: claimed && !litmus.is_mutation(),
            runs: failure.runs,
            litmus: litmus.to_string(),
            schedule: shrunk.found.schedule.to_string(),
        }
    }

    /// How to see it again.
    pub(super) fn replay(&self) -> String {
        let Alarm { strategy, machine, memory, .. } = self;
        let setting = format!("--strategy {strategy} --memory {memory} --machine {machine}");
        format!("save both as FILE.litmus and FILE, then: lazytlb litmus FILE.litmus {setting} --replay FILE")
    }
}

/// What a run found, or some of its shards.
#[derive(Serialize, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub(super) struct Soak {
    pub(super) shape: Shape,
    /// Which shards these are, from 1.
    pub(super) shards: Vec<u64>,
    pub(super) programs: u64,
    pub(super) seconds: f64,
    pub(super) strategies: BTreeMap<String, Counts>,
    /// The first of each kind under each strategy, in the order of the strategies.
    pub(super) alarms: Vec<Alarm>,
}

impl Soak {
    /// Whether there is no alarm: nothing was found that a strategy claims cannot be.
    pub(super) fn is_good(&self) -> bool {
        !self.alarms.iter().any(|alarm| alarm.claimed)
    }

    pub(super) fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["strategy", "runs", "executions", "steps", "exhausted", "failed"]);
        let mut total = Counts::default();
        for (strategy, counts) in &self.strategies {
            total.add(counts);
            let Counts { runs, executions, steps, exhausted, failed } = counts;
            table.add_row([
                strategy.clone(),
                runs.to_string(),
                executions.to_string(),
                steps.to_string(),
                exhausted.to_string(),
                failed.to_string(),
            ]);
        }
        let mut text = String::new();
        for alarm in &self.alarms {
            let Alarm { strategy, machine, memory, kind, message, runs, litmus, schedule, claimed, .. } = alarm;
            let what = if *claimed { "ALARM" } else { "found, not claimed" };
            let _ =
                writeln!(text, "{what}: {kind} under {strategy} on {machine}, {memory}, in {runs} runs: {message}\n");
            let _ = writeln!(text, "{litmus}\n{schedule}\n{}\n", alarm.replay());
        }
        let Shape { seed, of, .. } = self.shape;
        let shards: Vec<String> = self.shards.iter().map(u64::to_string).collect();
        let shards = if of == 1 { String::new() } else { format!(", shard {} of {of}", shards.join(" ")) };
        let verdict = if self.is_good() { "no alarm" } else { "ALARM" };
        let _ = writeln!(
            text,
            "{table}\n\n{} programs of seed {seed}{shards}: {} runs, {} random executions, {} steps, {:.4} seconds: {verdict}",
            self.programs, total.runs, total.executions, total.steps, self.seconds
        );
        text
    }
}
