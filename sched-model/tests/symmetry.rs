//! Like tasks and address spaces are taken for each other: that must lose nothing.

mod common;

use common::kinds;
use lazytlb_machine::{Exploration, Limits, MemoryModel, Reduction, Search};
use lazytlb_sched_model::{Litmus, Model, Rules, Setting, Strategy};

/// Roaming tasks: so many CPUs, tasks, and address spaces at a time.
fn roaming(cpus: usize, tasks: usize, mms: usize, execs: &str) -> Litmus {
    let names = |count: usize, prefix: &str| (0..count).map(|index| format!(" {prefix}{index}")).collect::<String>();
    let threads: String = (0..tasks).map(|task| format!("kthread t{task}\n")).collect();
    let cpus = vec!["cpu idle"; cpus].join(" | ");
    let text = format!("lazytlb-litmus 1\nname roaming\nroam{execs}\nmm{}\n{threads}\n{cpus}\n", names(mms, "m"));
    Litmus::parse(&text).unwrap_or_else(|error| panic!("{text}: {error:?}"))
}

fn explore(litmus: &Litmus, setting: &Setting, reduction: Reduction) -> Exploration {
    let limits = Limits { executions: 3_000_000, stop_at_first: false, ..Limits::default() };
    let exploration = Model::new(&litmus.program, setting).explore(Search::Exhaustive(reduction), limits, |_| {});
    assert!(exploration.complete, "{} {reduction:?}: {} states", setting.strategy, exploration.states);
    exploration
}

/// Strategies whose collectors loop while others give them work: what they have seen grows, and has no end of states.
const NO_END: [&str; 7] = [
    "refcount-deferred",
    "shootdown-batched",
    "hazard-deadline",
    "hazard-deadline-worker",
    "general-hazard",
    "epoch-qs",
    "epoch-pinned",
];

/// What differs only in names is explored once, and nothing else is left out.
fn compare(cpus: usize, tasks: usize, mms: usize, setting: &Setting) {
    let litmus = roaming(cpus, tasks, mms, "");
    let named = explore(&litmus, setting, Reduction::Named);
    let folded = explore(&litmus, setting, Reduction::Full);
    let what = format!("{} {} {} at {cpus}/{tasks}/{mms}", setting.strategy, setting.rules, setting.memory);
    println!("{what}: {} states, {} with names", folded.states, named.states);
    assert_eq!((folded.states, folded.stand_for), (named.nameless, named.states), "{what}");
    assert_eq!((kinds(&folded), &folded.outcomes), (kinds(&named), &named.outcomes), "{what}");
    assert!(
        folded.found.is_empty() || setting.strategy == Strategy::Unprotected,
        "{what}: {}",
        folded.found[0].verdict
    );
}

fn settings(memory: MemoryModel) -> impl Iterator<Item = Setting> {
    let rules = [Rules::Ipi, Rules::Broadcast];
    let pairs = Strategy::all().flat_map(move |strategy| rules.map(|rules| (strategy, rules)));
    let has_end = |&(strategy, rules): &(Strategy, Rules)| strategy.claims(rules) && !NO_END.contains(&strategy.name());
    pairs.filter(has_end).map(move |(strategy, rules)| Setting::new(strategy, rules, memory))
}

#[test]
fn as_many_states_differ_in_more_than_names() {
    for (cpus, tasks, mms) in [(1, 2, 2), (1, 3, 1), (2, 2, 1)] {
        settings(MemoryModel::Sc).for_each(|setting| compare(cpus, tasks, mms, &setting));
    }
    settings(MemoryModel::Tso).for_each(|setting| compare(1, 2, 1, &setting));
    compare(1, 3, 2, &Setting::new(Strategy::Refcount, Rules::Ipi, MemoryModel::Sc));
    compare(1, 3, 2, &Setting::new(Strategy::HazardConvert, Rules::Ipi, MemoryModel::Sc));
}

#[test]
fn what_is_wrong_is_found_whatever_it_is_called() {
    compare(1, 2, 2, &Setting::new(Strategy::Unprotected, Rules::Broadcast, MemoryModel::Sc));
    compare(2, 2, 1, &Setting::new(Strategy::Unprotected, Rules::Broadcast, MemoryModel::Sc));
}
