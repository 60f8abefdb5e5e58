//! Random programs: all are well-formed, say what they are in the litmus language, and pass where they must; what is planted
//! is found in them, and shrinks to little.

#[expect(dead_code, reason = "it has more than is needed here")]
mod common;

use std::collections::BTreeSet;

use common::bundled;
use lazytlb_machine::{Found, Limits, MemoryModel, Search};
use lazytlb_sched_model::generate::{self, MOST_CPUS};
use lazytlb_sched_model::program::{InInterrupt, Program, Statement};
use lazytlb_sched_model::shrink::shrink;
use lazytlb_sched_model::well_formed::check;
use lazytlb_sched_model::{Litmus, Model, Rules, Setting, Strategy};

/// A word for what a statement is: the first one or two of its text.
fn kind_of(litmus: &Litmus, statement: Statement) -> String {
    let alone = Program { scripts: vec![vec![statement]], start: vec![None], ..litmus.program.clone() };
    let alone = Program { walkers: vec![], isolated: vec![], ..alone };
    let text = Litmus { program: alone, ..litmus.clone() }.to_string();
    let line = text.lines().skip_while(|line| !line.starts_with("cpu ")).nth(1).unwrap_or_default();
    let words = if matches!(statement, Statement::Interrupt(..)) { 2 } else { 1 };
    line.split_whitespace().take(words).collect::<Vec<_>>().join(" ")
}

#[test]
fn programs_are_well_formed_and_read_as_they_are_printed() {
    for number in 0..3000 {
        let program = generate::program(number);
        assert_eq!(program, generate::program(number), "the same each time");
        assert!((1..=MOST_CPUS).contains(&program.cpus()));
        check(&program).unwrap_or_else(|misuse| panic!("{number}: {misuse}"));
        let litmus = generate::litmus(program);
        let text = litmus.to_string();
        let read = Litmus::parse(&text).unwrap_or_else(|error| panic!("{}", error.in_file(&text)));
        assert_eq!(read, litmus, "{text}");
    }
}

#[test]
fn bundled_tests_read_as_they_are_printed() {
    for litmus in bundled() {
        assert_eq!(Litmus::parse(&litmus.to_string()).unwrap(), litmus, "{litmus}");
    }
}

/// Nothing is left out that is not said to be.
#[test]
fn programs_have_all_statements() {
    let mut met = BTreeSet::new();
    for number in 0..6000 {
        let litmus = generate::litmus(generate::program(number));
        for &statement in litmus.program.scripts.iter().flatten() {
            met.insert(kind_of(&litmus, statement));
        }
        for (what, is_there) in [
            ("cid", litmus.program.kernel.cid.is_some()),
            ("isolated", !litmus.program.isolated.is_empty()),
            ("walker", !litmus.program.walkers.is_empty()),
            ("check active_mm", litmus.program.checks_active_mm),
            ("forbid", !litmus.program.kernel.forbidden.is_empty()),
        ] {
            if is_there {
                met.insert(what.to_owned());
            }
        }
    }
    let met: Vec<&str> = met.iter().map(String::as_str).collect();
    let all = [
        "access",
        "check active_mm",
        "cid",
        "clear-cid",
        "deep-idle",
        "exec",
        "exit",
        "flush",
        "forbid",
        "irq leave",
        "irq look",
        "irq mmdrop",
        "irq read-user-checked",
        "isolated",
        "leave",
        "load-user",
        "lock",
        "lock-irq",
        "look",
        "membarrier",
        "migrate",
        "mmdrop",
        "mmput",
        "munmap",
        "nmi look",
        "nmi read-user-checked",
        "offline",
        "online",
        "preempt",
        "revive",
        "softirq mmdrop",
        "store-user",
        "switch",
        "text-poke",
        "unlock",
        "unmap",
        "unuse",
        "unuse-temporary-mm",
        "use",
        "use-temporary-mm",
        "walk-leaders",
        "walker",
    ];
    assert_eq!(met, all);
}

/// The tests that show how a caller must not use the library are no programs that a correct kernel could run; some of those that
/// every strategy stands are.
#[test]
fn what_callers_must_not_do_is_not_well_formed() {
    // They show what the strategies' own differences are, or what one step of the library is for: the callers are right.
    let callers_are_right = ["b30-nmi-looks"];
    let (mut refused, mut accepted) = (0, 0);
    for litmus in bundled() {
        let name = &litmus.program.name;
        let is_misuse = litmus.mutant.is_some_and(|mutant| mutant.to_string() == "caller");
        let result = check(&litmus.program);
        if is_misuse && !callers_are_right.contains(&&**name) {
            assert!(result.is_err(), "{name} is a caller's mistake");
            refused += 1;
        } else if !litmus.is_mutation() {
            accepted += usize::from(result.is_ok());
        }
    }
    assert!(refused >= 10 && accepted >= 40, "{refused} refused, {accepted} accepted");
}

fn first_found(program: &Program, setting: &Setting, executions: u64) -> Option<Found> {
    let model = Model::new(program, setting);
    let found = model.explore(Search::Random { seed: 1, executions }, Limits::default(), |_| {}).found;
    found.into_iter().max_by_key(|found| !found.verdict.kind.is_finding())
}

#[test]
fn programs_pass_under_the_plainest_strategy() {
    for number in 0..400 {
        let program = generate::program(number);
        for rules in [Rules::Ipi, Rules::Broadcast, Rules::X86Linux614] {
            let setting = Setting::new(Strategy::Refcount, rules, MemoryModel::Tso);
            if let Some(found) = first_found(&program, &setting, 100) {
                panic!("{number} on {rules}: {}\n{}", found.verdict, generate::litmus(program));
            }
        }
    }
}

/// Statements of all scripts.
fn size(program: &Program) -> usize {
    program.scripts.iter().map(Vec::len).sum()
}

/// What is planted is found in some random program; what is left of that is small, and fails in the same way.
#[test]
fn what_is_planted_is_found_and_shrinks() {
    let planted = |strategy, label: &str| Setting {
        dropped: vec![label.to_owned()],
        ..Setting::new(strategy, Rules::Broadcast, MemoryModel::Tso)
    };
    let unprotected = Setting::new(Strategy::Unprotected, Rules::Broadcast, MemoryModel::Sc);
    let settings = [
        (unprotected, 4),
        (planted(Strategy::HazardConvert, "hazard.publish"), 5),
        (planted(Strategy::Refcount, "mm.mmgrab"), 5),
    ];
    for (setting, most) in settings {
        let failing = (0..2000).map(generate::program).filter(|program| size(program) > 8);
        let mut failing = failing.filter_map(|program| {
            let found = first_found(&program, &setting, 100)?;
            Some((program, found))
        });
        let (program, found) = failing.next().unwrap_or_else(|| panic!("nothing fails under {setting:?}"));
        let shrunk = shrink(&program, &setting, &found, 1000);
        let (before, after) = (generate::litmus(program), generate::litmus(shrunk.program.clone()));
        assert!(size(&shrunk.program) <= most, "{setting:?}: {} are left:\n{before}\n{after}", size(&shrunk.program));
        assert!(check(&shrunk.program).is_ok(), "{after}");
        assert_eq!(shrunk.found.verdict.kind, found.verdict.kind);
        // The schedule is one of the shrunk program, as it is read from its text.
        let read = Litmus::parse(&after.to_string()).unwrap();
        let again = Model::new(&read.program, &setting).replay(&shrunk.found.schedule).unwrap();
        assert!(again.verdicts.iter().any(|verdict| verdict.kind == found.verdict.kind), "{:?}", again.verdicts);
    }
}

/// An interrupt that a script asks for twice comes once: such a program is refused, and so are some others, with their place.
#[test]
fn what_is_wrong_is_said() {
    // What is wrong in every execution is refused as a file, unless that is what the test is for.
    let header = "lazytlb-litmus 1\nname t\nmutant caller\nmm A\nuser a A\nkthread k\nspinlock L\n";
    for (body, why) in [
        ("cpu a\nirq look\nirq look\n", "the same interrupt is asked for twice, and comes once"),
        ("cpu a\nexit\naccess\n", "statement 2 of cpu0: the task has no user memory"),
        ("user b A\ncpu a | cpu b\nswitch b |\n", "a task runs on two CPUs"),
        ("user b A\ncpu a | cpu b\nmigrate b | migrate a\n", "statement 1 of cpu0: CPUs wait for each other's tasks"),
        ("user b A\ncpu idle | cpu idle\nmigrate b | switch b\n", "a CPU is told to run a task that moves away"),
        ("cpu a\nlock L\n", "statement 2 of cpu0: what was opened is not closed"),
        ("cpu a\nlock L\nmmdrop A\nunlock L\n", "statement 2 of cpu0: this must not be done where preemption is off"),
        ("cpu k | cpu a\nflush A |\n", "statement 1 of cpu0: nobody keeps it"),
        ("cpu a | cpu k\n | use A\n | mmput A\n", "statement 2 of cpu1: who has adopted it relies on this user"),
        ("cpu a\noffline\n", "statement 1 of cpu0: a CPU goes offline from its idle task"),
        (
            "cpu a\npreempt k\nexit\n",
            "statement 2 of cpu0: the task has no address space of its own to give up, or CPUs keep ids of it",
        ),
        ("cpu k\nirq mmput A\n", "statement 1 of cpu0: this must not be done in such an interrupt"),
    ] {
        let litmus = Litmus::parse(&format!("{header}{body}")).unwrap();
        assert_eq!(check(&litmus.program).unwrap_err().to_string(), why, "{litmus}");
    }
    let interrupt = Statement::Interrupt(lazytlb_sched_model::Source::Softirq, InInterrupt::LookIntoActiveMm);
    let program = Program { scripts: vec![vec![interrupt]], start: vec![None], ..Program::default() };
    assert_eq!(check(&program).unwrap_err().place, Some((0, 0)));
}
