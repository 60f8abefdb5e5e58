//! The litmus language of lazy MMU mode: errors with their place, and no panic on any text.

use std::sync::LazyLock;

use lazytlb_machine::{Limits, Search};
use lazytlb_mmu_model::{Api, Arch, Litmus, Model};
use lazytlb_programs::{litmus_texts, no_text_panics};

/// The text of all bundled tests.
static TEXTS: LazyLock<Vec<String>> = LazyLock::new(|| litmus_texts("lazy-mmu"));

/// Words that mean something somewhere.
const WORDS: [&str; 47] = [
    "enable",
    "disable",
    "pause",
    "resume",
    "flush",
    "set",
    "clear",
    "protect",
    "by-store",
    "age",
    "install",
    "remove",
    "free",
    "read",
    "raw",
    "lockless",
    "touch",
    "retrying",
    "flush-tlb",
    "lock",
    "unlock",
    "sleep",
    "in-arch",
    "bh-disable",
    "bh-enable",
    "syscall-exit",
    "irq",
    "softirq",
    "section",
    "start",
    "end",
    "flush-secondary",
    "use",
    "device",
    "mirror",
    "P",
    "A",
    "ptl",
    "first",
    "cpus",
    "waiting",
    "merged",
    "s390",
    "|",
    "1",
    "99999999999999999999",
    "\u{1F600}",
];

/// What parses also runs: a few random executions of it, wherever it is for, do not panic.
fn feed(text: &str) {
    let Ok(litmus) = Litmus::parse(text) else { return };
    for &(api, arch) in &litmus.under {
        let limits = Limits { stop_at_first: false, ..Limits::default() };
        let model = Model::new(&litmus.program, &litmus.setting(api, arch));
        let found = model.explore(Search::Random { seed: 1, executions: 3 }, limits, |_| {}).found;
        assert!(found.iter().all(|found| found.verdict.kind != lazytlb_machine::Kind::Panic), "{text}\n{found:?}");
    }
}

no_text_panics!(Litmus, TEXTS, WORDS, feed);

/// What is wrong has its place.
#[test]
fn what_is_wrong_is_refused_with_its_place() {
    let header = "lazytlb-litmus 1\nname t\nlazy-mmu merged on none xen-x3\npte P Q\npage A\nspinlock L\n";
    let refused =
        |rest: &str| Litmus::parse(&format!("{header}{rest}")).map_err(|error| error.to_string()).unwrap_err();
    for (rest, expected) in [
        ("", "6:1: the test has no tasks"),
        ("task a | task a\n", "7:15: there is `a` already"),
        ("task a\nenable P\n", "8:9: expected nothing, or two entries"),
        ("task a\nenable Q P\n", "8:10: the last entry comes before the first"),
        ("task a\nset P B\n", "8:7: there is no page `B`"),
        ("task a\nage P A\n", "8:7: `A` is not known behind `age`"),
        ("task a\nset P A by-store\n", "8:9: `by-store` is not known behind `set`"),
        ("task a\nset P\n", "8:6: expected an entry and a page"),
        ("task a\nread P twice\n", "8:8: `twice` is not known behind `read`"),
        ("task a\ndisable now\n", "8:9: `now` is not known behind `disable`"),
        ("task a\nmunmap\n", "8:1: unknown statement `munmap`"),
        ("task a\nirq enable\n", "8:5: expected section PTE PAGE"),
        ("task a\n | pause\n", "8:4: there are only 1 columns"),
        ("task a\nunlock L\n", "8:1: the task has not taken this lock"),
        ("task a\nlock L\nlock L\n", "9:1: the task has this lock already"),
        ("task a\nlock L\n", "8:1: the script ends with a lock held"),
        (
            "task a\nenable\nenable\nenable\nenable\npause\npause\npause\npause\nenable\n",
            "16:1: no more than 8 sections",
        ),
        ("task a\nbh-enable\n", "8:1: the task has not disabled bottom halves"),
        ("device d gpu\n", "7:10: expected `mirror` or `shared`"),
        ("device d\n", "7:9: expected a name, and `mirror` or `shared`"),
        ("task a\nuse d P\n", "8:5: there is no device `d`"),
        ("device d mirror\ntask a\nuse d\n", "9:6: expected a device and an entry"),
        ("task a\nstart Q P\n", "8:9: the last entry comes before the first"),
        ("task a\nstart P P\nstart Q Q\n", "9:1: the task invalidates something already"),
        ("task a\nend\n", "8:1: the task has not begun to invalidate"),
        ("cpus 1\ntask a | task b\n", "7:6: 2 tasks do not wait"),
        ("cpus none\n", "7:6: expected a number up to 8"),
        ("waiting c\ntask a\n", "7:9: there is no task `c`"),
        ("map P A\nmap P A\n", "8:5: `P` maps a page already"),
        ("pte R S T\n", "7:9: no more than 4"),
        ("lazy-mmu v4 on xen-x5\n", "7:1: xen-x5 pauses tasks"),
        ("lazy-mmu merged on none\n", "7:1: merged on none is there already"),
        ("lazy-mmu merged on\n", "7:19: expected a back end"),
        ("lazy-mmu G4\n", "7:10: unknown generation `G4`; there are: hooks"),
        ("name again\n", "7:1: there is a line `name` already"),
        ("strategy refcount\n", "7:1: `strategy` is not known here"),
        ("task a\n\nexpect merged none R1\n", "9:8: merged claims none: it passes"),
        ("task a\n\nexpect merged s390 R1\n", "9:8: the test is not for merged on s390"),
        ("task a\n\nexpect merged xen-x3 R19\n", "9:22: unknown verdict `R19`"),
    ] {
        assert!(refused(rest).starts_with(expected), "{rest}: {}", refused(rest));
    }
    let refused = |text: &str| Litmus::parse(text).map_err(|error| error.to_string()).unwrap_err();
    assert_eq!(refused("herd"), "1:1: not a litmus test of this version: expected `lazytlb-litmus 1`");
    assert!(refused("lazytlb-litmus 1\nname t\ntask a\n").starts_with("3:1: the test has no line `lazy-mmu`"));
}

/// A test may have everything at once.
#[test]
fn all_of_the_language_is_read_and_run() {
    let text = "lazytlb-litmus 1\nname t\nlazy-mmu merged\ncpus 2\nwaiting b\npreemptions 1\npte P Q\npte R\npage A B\nmap P A\n\
        device gpu mirror\ndevice iommu shared\nspinlock L\nat-most 9\ntask a | task b\nirq section Q B | sleep\nsoftirq set R B | read P lockless\nenable P Q | \n\
        protect P A |\nlock L |\nflush |\nset Q A |\nunlock L |\nread Q |\ndisable |\nflush-tlb |\ntouch P |\nsyscall-exit |\n\
        start P Q | use gpu P\nflush-secondary P | use iommu P\nend |\n";
    let litmus = Litmus::parse(text).unwrap();
    assert_eq!(litmus.under.len(), Arch::ALL.len());
    assert_eq!(litmus.program.tables, [0, 0, 1]);
    assert!(litmus.under.iter().all(|&(api, _)| api == Api::Merged));
    feed(text);
}
