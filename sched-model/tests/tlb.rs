//! The simulated hardware's cached translations: what an access finds, and what is a stale one.

mod common;

use std::collections::BTreeSet;

use common::{bundled, explore, kinds};
use lazytlb_machine::{Kind, MemoryModel};
use lazytlb_sched_model::{Litmus, Mutant, Rules, Strategy};

fn litmus(text: &str) -> Litmus {
    Litmus::parse(&format!("lazytlb-litmus 1\nname t\n{text}")).unwrap()
}

fn found(litmus: &Litmus, rules: Rules) -> BTreeSet<Kind> {
    let result = explore(litmus, &litmus.setting(Strategy::Refcount, rules, MemoryModel::Tso));
    assert!(result.complete);
    kinds(&result)
}

/// An unmapped page without a flush: what a CPU has cached of it is stale, what it walks afresh is a page fault.
#[test]
fn a_cached_translation_outlives_its_page_only_without_a_flush() {
    let program = "mm A\nuser sh A\nuser thread A\ncpu sh | cpu thread\nunmap A | access\n | access\n";
    let flushed = litmus(program);
    let unflushed = litmus(&format!("machine broadcast-flush\ndrop hardware.invalidate\n{program}"));
    for rules in Rules::ALL {
        assert_eq!(found(&flushed, rules), BTreeSet::new(), "{rules}");
    }
    assert_eq!(found(&unflushed, Rules::Broadcast), BTreeSet::from([Kind::StaleTranslation]));
    let once = program.replace("\n | access", "");
    let once = litmus(&format!("machine broadcast-flush\ndrop hardware.invalidate\n{once}"));
    assert_eq!(found(&once, Rules::Broadcast), BTreeSet::new(), "nothing is cached before the first access");
}

/// A walker can cache what no access has asked for.
#[test]
fn hardware_caches_without_being_asked() {
    let text = "machine broadcast-flush\ndrop hardware.invalidate\nmm A\nuser sh A\nuser thread A\n";
    let with = litmus(&format!("{text}cpu sh | cpu thread | walker 1\nunmap A | access |\n"));
    let without = litmus(&format!("{text}cpu sh | cpu thread\nunmap A | access\n"));
    assert_eq!(found(&without, Rules::Broadcast), BTreeSet::new());
    assert_eq!(found(&with, Rules::Broadcast), BTreeSet::from([Kind::StaleTranslation]));
}

/// A process that has another's translations cached under its tag reads the other's memory: with two slots and three
/// processes tags are used again.
#[test]
fn a_tag_that_is_used_again_is_dropped_first() {
    let text = "mm A B C\nuser a A\nuser b B\nuser c C\ncpu a\n\
                access\nswitch b\naccess\nswitch c\naccess\nswitch a\naccess\n";
    let program = litmus(text);
    for rules in Rules::ALL {
        assert_eq!(found(&program, rules), BTreeSet::new(), "{rules}");
    }
}

#[test]
fn a_kernel_thread_has_no_user_memory() {
    let text = "lazytlb-litmus 1\nname t\nmm A\nuser sh A\nkthread k\ncpu sh | cpu k\n | access\n";
    let error = Litmus::parse(text).unwrap_err();
    assert_eq!((error.line, error.message.as_str()), (7, "the task has no user memory"));
}

/// The report says what a kernel developer needs: who accessed which frame, what the CPU had cached, who freed it.
#[test]
fn a_stale_translation_is_reported() {
    let litmus = bundled().into_iter().find(|litmus| litmus.program.name == "b16-switch-window").unwrap();
    let setting = litmus.setting(Strategy::Refcount, Rules::X86Linux614, MemoryModel::Sc);
    let model = lazytlb_sched_model::Model::new(&litmus.program, &setting);
    let result = explore(&litmus, &setting);
    let report = model.report(&model.shrink(&result.found[0]), None).unwrap();
    for line in
        ["BUG: KASAN: stale-translation in", "User access through a translation to frame at addr", "Freed by task"]
    {
        assert!(report.contains(line), "{line}:\n{report}");
    }
    assert!(report.contains("stale-translation: I9: a task of mm A on cpu1 accesses frame["), "{report}");
    assert!(report.contains("and caches frame["), "{report}");
}

/// A rule with a step wrong stands in for that rule, and under the one strategy that it was built with.
#[test]
fn a_mutant_of_rules_names_its_rules() {
    for mutant in Mutant::ALL {
        let Some(rules) = mutant.rules() else { continue };
        let text = |machine: &str, strategy: &str| {
            format!(
                "lazytlb-litmus 1\nname t\nmutant {mutant}\n{machine}mm A\nuser sh A\ncpu sh\nexpect {strategy} {rules} holds\n"
            )
        };
        let its_own = mutant.strategy().name();
        Litmus::parse(&text(&format!("machine {rules}\n"), its_own)).unwrap();
        for (machine, strategy) in [(format!("machine {rules}\n"), "no-lazy"), (String::new(), its_own)] {
            let error = Litmus::parse(&text(&machine, strategy)).unwrap_err();
            assert!(error.message.contains(&format!("mutant `{mutant}` is of {rules}")), "{error}");
        }
    }
}
