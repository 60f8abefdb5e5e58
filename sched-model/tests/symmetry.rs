//! Like tasks and address spaces are taken for each other: that must lose nothing.

mod common;

use std::collections::BTreeSet;

use common::{bundled, explore, explore_by, kinds};
use lazytlb_machine::MemoryModel::{Sc, Tso};
use lazytlb_machine::{Kind, Limits, MemoryModel, Outcome, Reduction, Search};
use lazytlb_sched_model::{Litmus, Model, Rules, Setting, Strategy};

/// Roaming tasks: so many CPUs, tasks, and address spaces at a time.
fn roaming(cpus: usize, tasks: usize, mms: usize, execs: &str) -> Litmus {
    let names = |count: usize, prefix: &str| (0..count).map(|index| format!(" {prefix}{index}")).collect::<String>();
    let threads: String = (0..tasks).map(|task| format!("kthread t{task}\n")).collect();
    let cpus = vec!["cpu idle"; cpus].join(" | ");
    let text = format!("lazytlb-litmus 1\nname roaming\nroam{execs}\nmm{}\n{threads}\n{cpus}\n", names(mms, "m"));
    Litmus::parse(&text).unwrap_or_else(|error| panic!("{text}: {error:?}"))
}

/// Outcomes that differ only in which mm is which are one. An outcome says of each mm whether it is alive, and of each CPU which
/// one it is on; it says nothing if an error has stopped the execution.
fn nameless(outcomes: &BTreeSet<Outcome>, mms: usize) -> BTreeSet<Outcome> {
    let swapped = |values: &[u64]| {
        let (alive, on) = values.split_at(mms.min(values.len()));
        let other = |&mm: &u64| if mm < mms as u64 { mms as u64 - 1 - mm } else { mm };
        alive.iter().rev().copied().chain(on.iter().map(other)).collect()
    };
    assert!(mms <= 2, "there are more ways to name them than forwards and backwards");
    let nameless = |(verdicts, values): &Outcome| (verdicts.clone(), values.clone().min(swapped(values)));
    outcomes.iter().map(nameless).collect()
}

/// What differs only in names is explored once, and nothing else is left out.
fn compare(cpus: usize, tasks: usize, mms: usize, setting: &Setting) {
    let litmus = roaming(cpus, tasks, mms, "");
    let named = explore_by(&litmus, setting, Reduction::Named);
    let folded = explore(&litmus, setting);
    let what = format!("{} {} {} at {cpus}/{tasks}/{mms}", setting.strategy, setting.rules, setting.memory);
    assert!(named.complete && folded.complete, "{what}");
    assert_eq!((folded.states, folded.stand_for), (named.nameless, named.states), "{what}");
    assert_eq!(kinds(&folded), kinds(&named), "{what}");
    assert_eq!(nameless(&folded.outcomes, mms), nameless(&named.outcomes, mms), "{what}");
    assert!(
        folded.found.is_empty() || setting.strategy == Strategy::Unprotected,
        "{what}: {}",
        folded.found[0].verdict
    );
}

fn settings(memory: MemoryModel) -> impl Iterator<Item = Setting> {
    let rules = [Rules::Ipi, Rules::Broadcast];
    let pairs = Strategy::all().flat_map(move |strategy| rules.map(|rules| (strategy, rules)));
    pairs
        .filter(|&(strategy, rules)| strategy.claims(rules))
        .map(move |(strategy, rules)| Setting::new(strategy, rules, memory))
}

#[test]
fn as_many_states_differ_in_more_than_names() {
    for (cpus, tasks, mms) in [(1, 2, 2), (1, 3, 1), (2, 2, 1)] {
        settings(Sc).for_each(|setting| compare(cpus, tasks, mms, &setting));
    }
    settings(Tso).for_each(|setting| compare(1, 2, 1, &setting));
    compare(1, 3, 2, &Setting::new(Strategy::Refcount, Rules::Ipi, Sc));
    compare(1, 3, 2, &Setting::new(Strategy::HazardConvert, Rules::Ipi, Sc));
}

#[test]
fn what_is_wrong_is_found_whatever_it_is_called() {
    compare(1, 2, 2, &Setting::new(Strategy::Unprotected, Rules::Broadcast, Sc));
    compare(2, 2, 1, &Setting::new(Strategy::Unprotected, Rules::Broadcast, Sc));
}

/// What a task has seen must say where it is: a search that takes one state for another misses what comes behind it.
#[test]
fn states_that_are_one_have_the_same_next_steps() {
    let settings_of = |litmus: &Litmus| {
        let all = litmus.machines.iter().flat_map(|&rules| Strategy::all().map(move |strategy| (strategy, rules)));
        // What strategies do they do on all rules, and rules under all strategies.
        let one_or_the_other =
            |&(strategy, rules): &(Strategy, Rules)| Rules::SIMPLE.contains(&rules) || strategy == Strategy::Refcount;
        let runs =
            all.filter(one_or_the_other).filter(|&(strategy, rules)| !litmus.is_slow_under(strategy, rules, Tso));
        runs.map(|(strategy, rules)| litmus.setting(strategy, rules, Tso)).collect::<Vec<_>>()
    };
    for litmus in bundled().iter().filter(|litmus| !litmus.is_mutation() && litmus.memories.contains(&Tso)) {
        for setting in settings_of(litmus) {
            let limits = Limits { executions: 3_000, stop_at_first: false, ..Limits::default() };
            let search = Search::Exhaustive(Reduction::Named);
            let found = Model::new(&litmus.program, &setting).explore(search, limits, |_| {}).found;
            let panic = found.iter().find(|found| found.verdict.kind == Kind::Panic);
            let what = format!("{} {} {}", litmus.program.name, setting.strategy, setting.rules);
            assert!(panic.is_none(), "{what}: {}", panic.unwrap().verdict);
        }
    }
}
