//! The litmus language: errors with their place, and no panic on any text.

use std::sync::LazyLock;

use lazytlb_machine::{Kind, Limits, MemoryModel, Reduction, Search};
use lazytlb_programs::{litmus_texts, no_text_panics};
use lazytlb_sched_model::{Litmus, Model, Rules, Setting, Strategy};

/// The text of all bundled tests.
static TEXTS: LazyLock<Vec<String>> = LazyLock::new(|| litmus_texts(""));

/// Words that mean something somewhere.
const WORDS: [&str; 42] = [
    "switch",
    "exit",
    "exec",
    "use",
    "unuse",
    "mmput",
    "mmdrop",
    "flush",
    "munmap",
    "look",
    "offline",
    "online",
    "goto",
    "irq",
    "nmi",
    "softirq",
    "preempt",
    "migrate",
    "walker",
    "use-temporary-mm",
    "unuse-temporary-mm",
    "text-poke",
    "save-root",
    "load-saved-root",
    "store-user",
    "membarrier",
    "lock",
    "lock-irq",
    "unlock",
    "leave",
    "walk-leaders",
    "look-parked",
    "frees-first",
    "cpu",
    "idle",
    "A",
    "B",
    "sh",
    "|",
    "1",
    "99999999999999999999",
    "\u{1F600}",
];

/// What parses also runs: a few random executions of it, under every strategy, do not panic.
fn feed(text: &str) {
    let Ok(litmus) = Litmus::parse(text) else { return };
    for strategy in Strategy::all() {
        let setting = Setting::new(strategy, Rules::Ipi, MemoryModel::Tso);
        let limits = Limits { stop_at_first: false, ..Limits::default() };
        Model::new(&litmus.program, &setting).explore(Search::Random { seed: 1, executions: 5 }, limits, |_| {});
    }
}

no_text_panics!(Litmus, TEXTS, WORDS, feed);

/// A script that asks for what cannot be is told so, also where a test is for a caller's mistake and may.
#[test]
fn what_was_not_adopted_is_not_given_back() {
    let text = "lazytlb-litmus 1\nname t\nmutant caller\nmm A\nuser sh A\n\ncpu sh\nunuse\n";
    let litmus = Litmus::parse(text).unwrap();
    let model = Model::new(&litmus.program, &litmus.setting(Strategy::Refcount, Rules::Ipi, MemoryModel::Sc));
    let found = model.explore(Search::Exhaustive(Reduction::Full), Limits::default(), |_| {}).found;
    assert_eq!(found[0].verdict.kind, Kind::Assertion);
}

/// What is wrong in every execution is no finding: it has a place in the file.
#[test]
fn scripts_that_cannot_be_right_are_refused() {
    let header = "lazytlb-litmus 1\nname t\nmm A B\nuser sh A\nuser b B\nkthread k\nspinlock L\nword X\n";
    let refused =
        |body: &str| Litmus::parse(&format!("{header}{body}")).map_err(|error| error.to_string()).unwrap_err();
    for (body, expected) in [
        ("cpu sh\nunuse-temporary-mm\n", "10:1: no temporary tables are loaded"),
        ("cpu k | cpu sh\nuse-temporary-mm A |\ntext-poke A\n", "11:1: temporary tables are loaded already"),
        ("cpu k | cpu sh\nuse-temporary-mm A |\nswitch idle\n", "11:1: temporary tables are loaded, and preemption"),
        ("cpu sh | cpu k\n | online\n", "10:4: the CPU is online"),
        ("cpu idle\noffline\nlook\n", "11:1: the CPU is offline: only `online` can follow"),
        ("cpu sh\nmigrate sh\n", "10:1: the task runs on this CPU"),
        ("cpu sh | cpu b\nmigrate b | migrate sh\n", "10:1: CPUs wait for each other's tasks"),
        ("cpu sh\nunlock L\n", "10:1: the lock is not held"),
        ("cpu sh\nlock L\nlock-irq L\n", "11:1: the CPU has locked it already"),
        ("cpu sh\nexit\naccess\n", "11:1: the task has no user memory"),
        ("cpu k\nload-user X\n", "10:1: the task has no user memory"),
        ("cpu sh\nuse B\n", "10:1: the task has an address space already"),
        ("cpu k\nuse A\nunuse\nunuse\n", "12:1: the task has adopted no address space"),
        ("cpu sh\nmembarrier B\n", "10:1: the address space is not the running task's"),
        ("cpu sh\nload-saved-root\n", "10:1: no task has saved a root"),
    ] {
        assert!(refused(body).starts_with(expected), "{body}: {}", refused(body));
        // A test of a caller's mistake is for just that.
        Litmus::parse(&format!("{header}mutant caller\n{body}")).unwrap();
    }
    // Right in some execution, as far as one can tell: the task may come, the CPU may be preempted, or go back.
    for body in [
        "cpu sh | cpu b\nmigrate b | switch idle\n",
        "cpu sh | cpu b\nmigrate b |\naccess |\n",
        "cpu sh | cpu k\nswitch k | exit\nuse B |\nunuse |\n",
        "cpu sh\npreempt k\nunlock L\n",
        "cpu idle\noffline\nonline\nswitch sh\naccess\n",
        "cpu sh\nlock L\nunlock L\nlock L\nunlock L\n",
    ] {
        Litmus::parse(&format!("{header}{body}")).unwrap();
    }
}

/// A test is slow where it says so, and nowhere else.
#[test]
fn a_test_says_where_it_is_slow() {
    use MemoryModel::{Sc, Tso, Weak};
    let text = "lazytlb-litmus 1\nname t\nslow epoch-qs refcount on plain arm64 under weak\nslow lazyfix on plain\n\
                slow hazard-ipi under sc tso\nslow users-only\nmm A\nuser sh A\ncpu sh\nexit\n";
    let litmus = Litmus::parse(text).unwrap();
    let is_slow = |strategy: &str, rules: &str, memory| {
        litmus.is_slow_under(strategy.parse().unwrap(), rules.parse().unwrap(), memory)
    };
    for (strategy, rules, memory, expected) in [
        ("refcount", "arm64", Weak, true),
        ("refcount", "arm64", Tso, false),
        ("refcount", "ipi-flush", Weak, false),
        ("epoch-qs", "plain", Weak, true),
        ("epoch-pinned", "plain", Weak, false),
        ("lazyfix", "plain", Sc, true),
        ("lazyfix", "arm64", Weak, false),
        ("hazard-ipi", "arm64", Sc, true),
        ("hazard-ipi", "arm64", Weak, false),
        ("users-only", "x86-6.12", Tso, true),
    ] {
        assert_eq!(is_slow(strategy, rules, memory), expected, "{strategy} {rules} {memory}");
    }
    assert_eq!(Litmus::parse(&litmus.to_string()).unwrap(), litmus, "it is read as it is printed");
}

/// A test of the largest size that is accepted fits into its machine.
#[test]
fn the_largest_test_fits() {
    let mut text = String::from("lazytlb-litmus 1\nname large\n");
    for mm in 0..16 {
        text += &format!("mm M{mm}\nuser u{mm} M{mm}\nkthread k{mm}\n");
    }
    let columns: Vec<String> = (0..8).map(|cpu| format!("cpu u{cpu}")).collect();
    let walkers: Vec<String> = (0..7).map(|cpu| format!("walker {cpu}")).collect();
    text += &format!("{} | {}\n", columns.join(" | "), walkers.join(" | "));
    feed(&text);
    Litmus::parse(&text).unwrap();
}

/// A line of any length is read in time that grows with it.
#[test]
fn a_long_line_is_refused_soon() {
    let text = format!("lazytlb-litmus 1\nname t\nmm A\nuser sh A\ncpu sh\n{}\n", "flush A ".repeat(1_000_000));
    assert!(Litmus::parse(&text).is_err());
}

#[test]
fn errors_say_where_and_what() {
    let header = "lazytlb-litmus 1\nname t\nmm A\nuser sh A\n";
    for (text, expected) in [
        ("".to_owned(), "t:1:1: not a litmus test of this version: expected `lazytlb-litmus 1`"),
        (format!("{header}cpu sh\njump\n"), "t:6:1: unknown statement `jump`; expected switch, exit,"),
        (format!("{header}cpu sh | cpu kw\n"), "t:5:14: there is no task `kw`"),
        (format!("{header}cpu sh\nexit | exit\n"), "t:6:8: there are only 1 columns"),
        (format!("{header}cpu sh\nexec C\n"), "t:6:6: there is no mm `C`"),
        (format!("{header}cpu sh\nirq jump\n"), "t:6:5: expected look, mmput MM, mmdrop MM, look-parked,"),
        (format!("{header}cpu sh | walker 7\n"), "t:5:17: expected the number of a CPU to the left"),
        (format!("{header}machine z80\n"), "t:5:9: unknown machine `z80`; there are: ipi-flush, ipi-unlazy,"),
        (format!("{header}mutant none\n"), "t:5:8: unknown mutant `none`; there are: caller,"),
        (format!("{header}bug B99\n"), "t:5:8: expected a title after `bug`"),
        (format!("{header}cpu sh\ngoto 2\n"), "t:6:6: expected the number of an earlier statement of this CPU"),
        (header.to_owned(), "t:4:1: the test has no CPUs"),
        (format!("{header}cpu sh\nlock L\n"), "t:6:6: there is no spinlock `L`"),
        (format!("{header}cpu sh\nload-user X\n"), "t:6:11: there is no user word `X`"),
        (format!("{header}cpu sh\nleave now\n"), "t:6:7: not known behind `leave`"),
        (format!("{header}cpu sh\nclear-cid 0\n"), "t:6:1: expected a line `cid MM` in the header"),
        (format!("{header}word X\ncpu sh\nload-user X\nforbid 1:X=0\n"), "t:8:8: expected CPU:WORD=0 or CPU:WORD=1"),
        (format!("{header}machine plain\nslow refcount on arm64\ncpu sh\nexit\n"), "t:6:1: the test is not for arm64"),
        (format!("{header}memory sc\nslow refcount under tso\ncpu sh\nexit\n"), "t:6:1: the test is not for tso"),
        (format!("{header}slow on arm64\n"), "t:5:6: expected strategies"),
        (format!("{header}slow refcount on\n"), "t:5:17: expected machines"),
        (format!("{header}slow refcount under tos\n"), "t:5:21: unknown memory model `tos`"),
        (format!("{header}slow refcount under tso on arm64\n"), "t:5:25: unknown memory model `on`"),
        (format!("{header}memory tso weak\ncpu sh\naccess\n"), "t:5:12: `weak` knows no user accesses"),
        (format!("{header}kthread k\nmemory weak\ncpu k\nrevive A\n"), "t:6:8: `weak` knows no user accesses"),
        (format!("{header}memory weak\nroam\ncpu idle\n"), "t:5:8: tasks roam under sc and tso only"),
        (format!("{header}roam\ncpu sh\nexit\n"), "t:5:1: where tasks roam, CPUs are `cpu idle`"),
        (format!("{header}cpu sh\nexec A\n\nexit\n\n"), "t:6:1: mm `A` is made by an exec, so nobody can have it"),
        (format!("{header}mm B\ncpu sh\nexec B\n exec B\n"), "t:8:2: mm `B` is made by more than one exec"),
        (format!("{header}mm B  C\ncpu sh\nexec B\n# end\n"), "t:5:7: mm `C` has no user"),
        (format!("{header}mm B\ncpu sh\nmmdrop B\n\n"), "t:5:4: mm `B` has references but no user"),
        (format!("{header}mutant skips-lazies\ncpu sh\nexit\n\n"), "t:5:8: mutant `skips-lazies` is of x86-6.12"),
        ("lazytlb-litmus 1\nmm A\nuser sh A\ncpu sh\nexit\n\n\n".to_owned(), "t:5:1: the test has no name"),
        (format!("{header}name u\n"), "t:5:6: the test has a name, `t`"),
        (format!("{header}memory sc\nmemory tso\n"), "t:6:1: there is a line `memory` already"),
        (format!("{header}bug B1 one\nbug B2 two\n"), "t:6:1: there is a line `bug` already"),
        (format!("{header}memory tso sc tso\n"), "t:5:15: `tso` is there already"),
        (format!("{header}mm\n"), "t:5:3: expected a name after `mm`"),
        (format!("{header}cpu sh\nallow\n"), "t:6:6: expected what is allowed"),
        (format!("{header}cpu sh\nmunmap\n"), "t:6:7: expected one mm"),
        (format!("{header}cpu sh\nmunmap A frees-first now\n"), "t:6:22: `now` is not known behind `munmap`"),
        (format!("{header}cpu sh\nflush A frees\n"), "t:6:9: `frees` is not known behind `flush`"),
        (format!("{header}cpu sh\nmembarrier A of-all\n"), "t:6:14: `of-all` is not known behind `membarrier`"),
        (format!("{header}cpu idle\noffline soon\n"), "t:6:9: expected nothing, or one of borrowing"),
        (format!("{header}cpu sh\nmunmap A frees-first\n"), "t:6:1: it is there to be caught"),
        (format!("{header}cpu sh\nmmdrop A twice\n"), "t:6:1: it is there to be caught"),
        (format!("{header}memory\n"), "t:5:7: expected a name after `memory`"),
        (format!("{header}machine # none\n"), "t:5:8: expected a name after `machine`"),
        (format!("{header}machine plain\ncpu sh\nexpect refcount arm64\n"), "t:7:17: the test is not for arm64"),
        (
            format!("{header}cpu sh\nexpect refcount plain leak\n"),
            "t:6:17: refcount claims plain: it passes, and nothing else is expected",
        ),
        (
            format!("{header}cpu sh\nexpect unprotected plain\nexpect unprotected plain holds\n"),
            "t:7:20: what is expected of unprotected on plain was said before",
        ),
        (format!("{header}cpu sh\nexit\nexit\n"), "t:7:1: the task has no address space"),
        (format!("{header}cpu sh\nswitch idle\nexit\n"), "t:7:1: the task has no address space"),
        (format!("{header}cpu sh\noffline\n"), "t:6:1: the CPU runs a user task"),
        (format!("{header}spinlock L\ncpu sh\nlock L\nexit\n"), "t:8:1: the CPU holds a lock"),
    ] {
        let error = Litmus::parse(&text).unwrap_err().in_file("t");
        assert!(error.starts_with(expected), "{error}");
        let lines: Vec<&str> = error.lines().collect();
        let column: usize = error.split(':').nth(2).unwrap().parse().unwrap();
        assert_eq!(lines[2].find('^'), Some(column + 3), "the caret stands under the column: {error}");
    }
}
