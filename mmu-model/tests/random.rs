//! Random programs that pair their calls, on one CPU and on two: nothing is found wherever it is claimed so, in the first 3,000 executions of an
//! exhaustive search. Small programs have no more.

use core::time::Duration;

use lazytlb_machine::{Limits, Reduction, Search};
use lazytlb_mmu_model::program::{InInterrupt, Source};
use lazytlb_mmu_model::{Api, Arch, Model, Program, Setting, Statement};
use proptest::prelude::*;

/// What a task does, properly nested.
#[derive(Clone, Debug)]
enum Part {
    /// Its entry is set to one of the pages, or cleared.
    Change(Option<usize>),
    /// Its entry is changed by a transaction.
    Protect,
    /// Its entry is made old.
    Age,
    /// A section that names its entry, or not.
    Section(bool, Vec<Part>),
    Pause(Vec<Part>),
    /// What waits is made to take effect, and the entry is read past the accessors.
    Flush,
    /// The TLBs are flushed.
    FlushTlb,
    /// The entry is used.
    Touch,
    /// The entry is changed in a section, with its lock held, and the TLBs are flushed behind the section's end.
    Locked(usize),
    Interrupt(bool),
}

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let leaf = prop_oneof![
        4 => prop::option::of(0..2usize).prop_map(Part::Change),
        1 => Just(Part::Protect),
        1 => Just(Part::Age),
        1 => Just(Part::Flush),
        1 => Just(Part::FlushTlb),
        2 => Just(Part::Touch),
        1 => (0..2usize).prop_map(Part::Locked),
        1 => any::<bool>().prop_map(Part::Interrupt),
    ];
    let part = leaf.prop_recursive(3, 6, 2, |inner| {
        prop_oneof![
            3 => (any::<bool>(), prop::collection::vec(inner.clone(), 0..3)).prop_map(|(named, parts)| Part::Section(named, parts)),
            1 => prop::collection::vec(inner, 0..3).prop_map(Part::Pause),
        ]
    });
    prop::collection::vec(part, 0..3)
}

/// The statements of the task whose entry this is. `mapped` is the page that the entry maps.
fn write(script: &mut Vec<Statement>, entry: usize, parts: &[Part], in_section: bool, mapped: &mut Option<usize>) {
    for part in parts {
        match part {
            Part::Change(page) => change(script, entry, *page, mapped),
            // What reads an entry wants it in force.
            Part::Protect => {
                if let Some(page) = *mapped {
                    script.extend([Statement::Flush, Statement::Protect(entry, page)]);
                }
            }
            Part::Age => script.extend([Statement::Flush, Statement::Age(entry)]),
            Part::Section(named, parts) => {
                script.push(if *named { Statement::EnableWithPtes(entry, entry) } else { Statement::Enable });
                write(script, entry, parts, true, mapped);
                script.push(Statement::Disable);
            }
            Part::Pause(parts) => {
                script.push(Statement::Pause);
                write(script, entry, parts, false, mapped);
                // What is changed in a pause can be read at once.
                script.push(Statement::ReadLockless(entry));
                script.push(Statement::Resume);
            }
            Part::Flush => {
                script.push(Statement::Flush);
                script.push(if in_section { Statement::ReadLockless(entry) } else { Statement::Read(entry) });
            }
            Part::FlushTlb => script.push(Statement::FlushTlb),
            // Neither belongs there: what waits may be needed, or left when the lock is released.
            Part::Touch | Part::Locked(_) if in_section => {}
            Part::Touch => script.extend(mapped.map(|_| Statement::Touch(entry))),
            Part::Locked(page) => {
                script.extend([Statement::Lock(entry), Statement::EnableWithPtes(entry, entry)]);
                change(script, entry, Some(*page), mapped);
                script.extend([Statement::Disable, Statement::FlushTlb, Statement::Unlock(entry)]);
            }
            Part::Interrupt(soft) => {
                let source = if *soft { Source::Softirq } else { Source::Irq };
                script.push(Statement::Interrupt(source, InInterrupt::Section(2 + entry, 1)));
            }
        }
    }
}

/// An entry is cleared if it maps something, and set: what was written into a page is to go before another comes to its place.
fn change(script: &mut Vec<Statement>, entry: usize, page: Option<usize>, mapped: &mut Option<usize>) {
    if mapped.is_some() || page.is_none() {
        script.extend([Statement::Clear(entry), Statement::FlushTlb]);
    }
    script.extend(page.map(|page| Statement::Set(entry, page)));
    *mapped = page;
}

/// How the tasks are placed.
#[derive(Clone, Copy, Debug)]
enum Placement {
    OneCpu,
    SideBySide,
    /// The second one waits, and a CPU is free.
    Moves,
    /// Each has a CPU, and a third task waits for one.
    ThreeOnTwo,
}

fn placement() -> impl Strategy<Value = Placement> {
    prop::sample::select(vec![Placement::OneCpu, Placement::SideBySide, Placement::Moves, Placement::ThreeOnTwo])
}

fn program(scripts: &[Vec<Part>; 2], placement: Placement) -> Program {
    let write = |(entry, parts): (usize, &Vec<Part>)| {
        let mut script = Vec::new();
        write(&mut script, entry, parts, false, &mut None);
        script.push(Statement::SyscallExit);
        script
    };
    let mut scripts: Vec<Vec<Statement>> = scripts.iter().enumerate().map(write).collect();
    let mut tasks = vec!["first", "second"];
    let (cpus, waiting, preemptions) = match placement {
        Placement::OneCpu => (1, vec![1], 1),
        Placement::SideBySide => (2, vec![], 0),
        Placement::Moves => (2, vec![1], 1),
        Placement::ThreeOnTwo => {
            tasks.push("third");
            scripts.push(vec![Statement::Enable, Statement::Disable, Statement::SyscallExit]);
            (2, vec![2], 2)
        }
    };
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    Program {
        name: "random".to_owned(),
        cpus,
        preemptions,
        tasks: names(&tasks),
        waiting,
        scripts,
        ptes: names(&["P", "Q", "R", "S"]),
        tables: vec![0, 0, 1, 1],
        locks: names(&["L", "M"]),
        guards: vec![Some(0), Some(1), None, None],
        pages: names(&["A", "B"]),
        ..Program::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_found_where_it_is_claimed(first in parts(), second in parts(), placement in placement()) {
        let program = program(&[first, second], placement);
        for &arch in Arch::ALL.iter().filter(|&&arch| Api::Merged.claims(arch)) {
            let limits = Limits { executions: 3_000, time: Duration::from_secs(600), stop_at_first: false };
            let model = Model::new(&program, &Setting::new(Api::Merged, arch));
            let found = model.explore(Search::Exhaustive(Reduction::Full), limits, |_| {}).found;
            prop_assert!(found.is_empty(), "{arch}: {:?}", found.iter().map(|found| &found.verdict).collect::<Vec<_>>());
        }
    }
}
