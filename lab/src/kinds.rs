//! The kinds of litmus tests: of switches, which run under strategies on machines' rules; of lazy MMU mode, which run under generations
//! of the API on architectures; of MMU notifiers, which run under schemes of walks. What is common to all is here, so that the rest need not ask.

use std::collections::BTreeSet;

use anyhow::Result;
use lazytlb_machine::text::TextError;
use lazytlb_machine::{Exploration, Found, Kind, Limits, MemoryModel, Recording, Schedule, ScheduleError, Search};
use lazytlb_mmu_model::{self as mmu, Api, Arch};
use lazytlb_notifier_model::{self as notifier, Client, Scheme};
use lazytlb_sched_model::{self as sched, Mutant, Rules, Strategy};

/// A litmus test of any kind.
#[derive(Clone)]
pub(crate) enum Litmus {
    Switches(sched::Litmus),
    LazyMmu(mmu::Litmus),
    Notifier(notifier::Litmus),
}

/// What must be found somewhere.
pub(crate) struct Expected {
    pub(crate) setting: Setting,
    pub(crate) kinds: Vec<&'static str>,
}

impl Litmus {
    pub(crate) fn parse(text: &str) -> Result<Litmus, TextError> {
        if mmu::Litmus::is_one(text) {
            mmu::Litmus::parse(text).map(Litmus::LazyMmu)
        } else if notifier::Litmus::is_one(text) {
            notifier::Litmus::parse(text).map(Litmus::Notifier)
        } else {
            sched::Litmus::parse(text).map(Litmus::Switches)
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Litmus::Switches(litmus) => &litmus.program.name,
            Litmus::LazyMmu(litmus) => &litmus.program.name,
            Litmus::Notifier(litmus) => &litmus.program.name,
        }
    }

    /// What is said at the top.
    pub(crate) fn about(&self) -> &str {
        match self {
            Litmus::Switches(litmus) => &litmus.about,
            Litmus::LazyMmu(litmus) => &litmus.about,
            Litmus::Notifier(litmus) => &litmus.about,
        }
    }

    /// The known bug that the test shows.
    pub(crate) fn bug(&self) -> Option<&(String, String)> {
        match self {
            Litmus::Switches(litmus) => litmus.bug.as_ref(),
            Litmus::LazyMmu(litmus) => litmus.bug.as_ref(),
            Litmus::Notifier(litmus) => litmus.bug.as_ref(),
        }
    }

    /// Whether a bug is planted.
    pub(crate) fn is_mutation(&self) -> bool {
        match self {
            Litmus::Switches(litmus) => litmus.is_mutation(),
            Litmus::LazyMmu(litmus) => litmus.is_mutation(),
            Litmus::Notifier(litmus) => litmus.is_mutation(),
        }
    }

    pub(crate) fn cpus(&self) -> usize {
        match self {
            Litmus::Switches(litmus) => litmus.program.cpus(),
            Litmus::LazyMmu(litmus) => litmus.program.cpus,
            Litmus::Notifier(litmus) => litmus.program.tasks.len(),
        }
    }

    /// The machines that it is for.
    pub(crate) fn machines(&self) -> Vec<&'static str> {
        match self {
            Litmus::Switches(litmus) => litmus.machines.iter().map(|rules| rules.name()).collect(),
            Litmus::LazyMmu(litmus) => {
                let archs: BTreeSet<Arch> = litmus.under.iter().map(|(_, arch)| *arch).collect();
                archs.into_iter().map(Arch::name).collect()
            }
            Litmus::Notifier(litmus) => vec![client_name(litmus.client())],
        }
    }

    /// The memory models that it is for.
    pub(crate) fn memories(&self) -> &[MemoryModel] {
        match self {
            Litmus::Switches(litmus) => &litmus.memories,
            Litmus::LazyMmu(_) | Litmus::Notifier(_) => &[MemoryModel::Sc],
        }
    }

    /// Those under which it is run where nobody asks for one: `weak` takes its time, and is left to those who ask for it, and to tests
    /// that are for nothing else.
    pub(crate) fn usual_memories(&self) -> impl Iterator<Item = MemoryModel> + '_ {
        let all = self.memories().iter().copied();
        all.filter(|&memory| memory != MemoryModel::Weak || self.memories() == [MemoryModel::Weak])
    }

    /// What must be found where, under the usual memory models.
    pub(crate) fn expected(&self) -> Vec<Expected> {
        match self {
            Litmus::Switches(litmus) => {
                let all = litmus.expected.iter().flat_map(|one| {
                    self.usual_memories().map(move |memory| Expected {
                        setting: Setting::Switches(litmus.setting(one.strategy, one.rules, memory)),
                        kinds: one.kinds.iter().map(|kind| kind.name()).collect(),
                    })
                });
                all.collect()
            }
            Litmus::LazyMmu(litmus) => {
                let all = litmus.expected.iter().map(|one| Expected {
                    setting: Setting::LazyMmu(litmus.setting(one.api, one.arch)),
                    kinds: one.found.iter().copied().collect(),
                });
                all.collect()
            }
            Litmus::Notifier(litmus) => {
                let all = litmus.expected.iter().map(|(scheme, found)| Expected {
                    setting: Setting::Notifier(litmus.setting(*scheme)),
                    kinds: found.iter().copied().collect(),
                });
                all.collect()
            }
        }
    }

    /// What is planted, in words.
    pub(crate) fn planted(&self) -> String {
        let parts = match self {
            Litmus::Switches(litmus) => planted_in_switches(litmus),
            Litmus::LazyMmu(litmus) => match litmus.mutant {
                Some(mmu::Mutant::Caller) => vec![CALLER.to_owned()],
                Some(mutant) => {
                    vec![format!("a step of the back end, or of the kernel around it, is another one: {mutant}")]
                }
                None => vec![],
            },
            Litmus::Notifier(litmus) => match litmus.mutant {
                Some(notifier::Mutant::Caller) => vec![CALLER.to_owned()],
                Some(mutant) => {
                    vec![format!("a step of a driver, or of the kernel around the chain, is another one: {mutant}")]
                }
                None => vec![],
            },
        };
        match (&parts[..], self) {
            ([], Litmus::Switches(_)) => "nothing: a strategy runs where it does not belong".to_owned(),
            ([], Litmus::LazyMmu(_) | Litmus::Notifier(_)) => "nothing: it was wrong as it was".to_owned(),
            _ => parts.join("; "),
        }
    }
}

/// What a test of MMU notifiers has for a machine: what its devices are.
fn client_name(client: Option<Client>) -> &'static str {
    client.map_or("several", Client::name)
}

const CALLER: &str = "the program itself breaks a rule";

fn planted_in_switches(litmus: &sched::Litmus) -> Vec<String> {
    let mut parts = Vec::new();
    if !litmus.dropped.is_empty() {
        parts.push(format!("without effect: {}", litmus.dropped.join(", ")));
    }
    if !litmus.relaxed.is_empty() {
        parts.push(format!("without order: {}", litmus.relaxed.join(", ")));
    }
    match litmus.mutant {
        Some(Mutant::StaysQueued) => parts.push("a step of the scheduler is another one: stays-queued".to_owned()),
        Some(Mutant::Caller) => parts.push(CALLER.to_owned()),
        Some(mutant) => parts.push(format!("a step of the strategy is another one: {mutant}")),
        None => {}
    }
    parts
}

/// On what a test runs.
#[derive(Clone)]
pub(crate) enum Setting {
    Switches(sched::Setting),
    LazyMmu(mmu::Setting),
    Notifier(notifier::Setting),
}

impl Setting {
    /// The strategy, the generation of the API, or the scheme of walks.
    pub(crate) fn scheme(&self) -> &'static str {
        match self {
            Setting::Switches(setting) => setting.strategy.name(),
            Setting::LazyMmu(setting) => setting.api.name(),
            Setting::Notifier(setting) => setting.scheme.name(),
        }
    }

    /// The MMU's rules, the architecture, or what the devices are.
    pub(crate) fn machine(&self) -> &'static str {
        match self {
            Setting::Switches(setting) => setting.rules.name(),
            Setting::LazyMmu(setting) => setting.arch.name(),
            Setting::Notifier(setting) => client_name(setting.client),
        }
    }

    pub(crate) fn memory(&self) -> MemoryModel {
        match self {
            Setting::Switches(setting) => setting.memory,
            Setting::LazyMmu(_) | Setting::Notifier(_) => MemoryModel::Sc,
        }
    }

    /// Whether it is claimed to be right there.
    pub(crate) fn is_claimed(&self) -> bool {
        match self {
            Setting::Switches(setting) => setting.strategy.claims(setting.rules),
            Setting::LazyMmu(setting) => setting.api.claims(setting.arch),
            Setting::Notifier(setting) => setting.claimed,
        }
    }

    /// The options that ask for it.
    pub(crate) fn options(&self) -> String {
        match self {
            Setting::Switches(sched::Setting { strategy, rules, memory, .. }) => {
                format!("--strategy {strategy} --memory {memory} --machine {rules}")
            }
            Setting::LazyMmu(mmu::Setting { api, arch, .. }) => format!("--generation {api} --backend {arch}"),
            Setting::Notifier(setting) => format!("--walks {}", setting.scheme),
        }
    }

    /// The key of a header that has planted a label.
    pub(crate) fn key_of(&self, label: &String) -> &'static str {
        match self {
            Setting::Switches(setting) if setting.relaxed.contains(label) => "relax",
            _ => "drop",
        }
    }
}

/// What was found by a search, and what the test says of it.
pub(crate) struct Judged {
    /// By their names: all, if nothing should have been found, else what tells most.
    pub(crate) shown: Vec<&'static str>,
    /// Whether anything is no failure only by the test's leave.
    pub(crate) failed: bool,
    /// Whether it is just what the test expects, if it says so.
    pub(crate) as_told: Option<bool>,
    /// Whether the test expects that nothing is found.
    pub(crate) is_told_nothing: bool,
}

impl Litmus {
    pub(crate) fn judge(&self, setting: &Setting, exploration: &Exploration, claimed: bool) -> Judged {
        match (self, setting) {
            (Litmus::Switches(litmus), Setting::Switches(setting)) => {
                let kinds: BTreeSet<Kind> = exploration.found.iter().map(|found| found.verdict.kind).collect();
                let told = litmus.expectation(setting.strategy, setting.rules);
                // Where something came of a broken invariant, that.
                let all = claimed || kinds.len() == 1;
                let shown = kinds.iter().filter(|&&kind| all || kind != Kind::Invariant);
                Judged {
                    failed: kinds.iter().any(|kind| !litmus.allowed.contains(kind)),
                    as_told: told.map(|told| told.is_met_by(&kinds)),
                    is_told_nothing: told.is_some_and(|told| told.kinds.is_empty()),
                    shown: shown.map(|kind| kind.name()).collect(),
                }
            }
            (Litmus::LazyMmu(litmus), Setting::LazyMmu(setting)) => {
                let found: BTreeSet<&'static str> =
                    exploration.found.iter().map(|found| mmu::Rule::name_of(&found.verdict)).collect();
                let told = litmus.expectation(setting.api, setting.arch);
                Judged {
                    failed: !found.is_subset(&litmus.allowed),
                    as_told: told.map(|told| told.found == found),
                    is_told_nothing: told.is_some_and(|told| told.found.is_empty()),
                    shown: found.into_iter().collect(),
                }
            }
            (Litmus::Notifier(litmus), Setting::Notifier(setting)) => {
                let found: BTreeSet<&'static str> =
                    exploration.found.iter().map(|found| notifier::Invariant::name_of(&found.verdict)).collect();
                let told = litmus.expectation(setting.scheme);
                Judged {
                    failed: !found.is_subset(&litmus.allowed),
                    as_told: told.map(|told| *told == found),
                    is_told_nothing: told.is_some_and(BTreeSet::is_empty),
                    shown: found.into_iter().collect(),
                }
            }
            _ => unreachable!("a test runs in a setting of its own kind"),
        }
    }

    /// The test on its machine.
    pub(crate) fn model(&self, setting: &Setting) -> Model {
        match (self, setting) {
            (Litmus::Switches(litmus), Setting::Switches(setting)) => {
                Model::Switches(sched::Model::new(&litmus.program, setting))
            }
            (Litmus::LazyMmu(litmus), Setting::LazyMmu(setting)) => {
                Model::LazyMmu(mmu::Model::new(&litmus.program, setting))
            }
            (Litmus::Notifier(litmus), Setting::Notifier(setting)) => {
                Model::Notifier(notifier::Model::new(&litmus.program, setting))
            }
            _ => unreachable!("a test runs in a setting of its own kind"),
        }
    }
}

/// A test on its machine.
pub(crate) enum Model {
    Switches(sched::Model),
    LazyMmu(mmu::Model),
    Notifier(notifier::Model),
}

impl Model {
    pub(crate) fn explore(&self, search: Search, limits: Limits, progress: impl FnMut(u64)) -> Exploration {
        match self {
            Model::Switches(model) => model.explore(search, limits, progress),
            Model::LazyMmu(model) => model.explore(search, limits, progress),
            Model::Notifier(model) => model.explore(search, limits, progress),
        }
    }

    pub(crate) fn shrink(&self, found: &Found) -> Found {
        match self {
            Model::Switches(model) => model.shrink(found),
            Model::LazyMmu(model) => model.shrink(found),
            Model::Notifier(model) => model.shrink(found),
        }
    }

    pub(crate) fn replay(&self, schedule: &Schedule) -> Result<Recording, ScheduleError> {
        match self {
            Model::Switches(model) => model.replay(schedule),
            Model::LazyMmu(model) => model.replay(schedule),
            Model::Notifier(model) => model.replay(schedule),
        }
    }

    pub(crate) fn report(&self, found: &Found, replay: Option<&str>) -> Result<String, ScheduleError> {
        match self {
            Model::Switches(model) => model.report(found, replay),
            Model::LazyMmu(model) => model.report(found, replay),
            Model::Notifier(model) => model.report(found, replay),
        }
    }
}

/// Which settings are asked for: all that are not named.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct Asked {
    /// Only under this strategy; can be repeated. All strategies if not given, but where a test says that it is slow.
    #[arg(long, value_name = "NAME")]
    pub(crate) strategy: Vec<Strategy>,
    /// Only under this memory model: sc, tso or weak. Sc and tso if not given; all with `--slow`.
    #[arg(long, value_name = "MODEL", value_parser = crate::litmus::memory)]
    pub(crate) memory: Vec<MemoryModel>,
    /// Only on this machine; all that the test names if not given.
    #[arg(long, value_name = "RULES")]
    pub(crate) machine: Vec<Rules>,
    /// Only under this generation of lazy MMU mode; can be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) generation: Vec<Api>,
    /// Only on this back end of lazy MMU mode; can be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) backend: Vec<Arch>,
    /// Only under this scheme of MMU notifiers' walks; can be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) walks: Vec<Scheme>,
    /// Only with devices of this kind, of MMU notifiers' tests; can be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) client: Vec<Client>,
}

impl Asked {
    /// Whether what is asked for is about switches only.
    fn is_of_switches(&self) -> bool {
        !self.strategy.is_empty() || !self.machine.is_empty()
    }

    /// Whether it is about lazy MMU mode only.
    fn is_of_lazy_mmu(&self) -> bool {
        !self.generation.is_empty() || !self.backend.is_empty()
    }

    /// Whether it is about MMU notifiers only.
    fn is_of_notifiers(&self) -> bool {
        !self.walks.is_empty() || !self.client.is_empty()
    }

    /// The settings of a test that are asked for, and how many of them are left out because they are slow; with `slow`, those alone.
    pub(crate) fn settings_of(&self, litmus: &Litmus, slow: bool) -> (Vec<Setting>, usize) {
        match litmus {
            Litmus::Switches(_) if self.is_of_lazy_mmu() || self.is_of_notifiers() => (Vec::new(), 0),
            Litmus::LazyMmu(_) if self.is_of_switches() || self.is_of_notifiers() || slow => (Vec::new(), 0),
            Litmus::Notifier(_) if self.is_of_switches() || self.is_of_lazy_mmu() || slow => (Vec::new(), 0),
            Litmus::Switches(test) => self.of_switches(litmus, test, slow),
            Litmus::LazyMmu(test) => {
                let all = test.under.iter().filter(|(api, arch)| {
                    among(api, &self.generation) && among(arch, &self.backend) && among(&MemoryModel::Sc, &self.memory)
                });
                (all.map(|&(api, arch)| Setting::LazyMmu(test.setting(api, arch))).collect(), 0)
            }
            Litmus::Notifier(test) => {
                let has = |client: &Client| test.program.devices.iter().any(|device| device.client == *client);
                let is_asked_for =
                    (self.client.is_empty() || self.client.iter().any(has)) && among(&MemoryModel::Sc, &self.memory);
                let all = test.schemes.iter().filter(|&scheme| is_asked_for && among(scheme, &self.walks));
                (all.map(|&scheme| Setting::Notifier(test.setting(scheme))).collect(), 0)
            }
        }
    }

    fn of_switches(&self, litmus: &Litmus, test: &sched::Litmus, slow: bool) -> (Vec<Setting>, usize) {
        let (mut all, mut left_out) = (Vec::new(), 0);
        let strategies = if self.strategy.is_empty() { Strategy::all().collect() } else { self.strategy.clone() };
        for &rules in test.machines.iter().filter(|&rules| among(rules, &self.machine)) {
            let memories: Vec<MemoryModel> = match &self.memory[..] {
                [] if slow => test.memories.clone(),
                [] => litmus.usual_memories().collect(),
                asked => test.memories.iter().copied().filter(|memory| asked.contains(memory)).collect(),
            };
            for memory in memories {
                let is_slow = |strategy: &&Strategy| test.is_slow_under(**strategy, rules, memory);
                let (slow_ones, others): (Vec<_>, Vec<_>) = strategies.iter().partition(is_slow);
                let asked = match (slow, !self.strategy.is_empty()) {
                    (true, _) => slow_ones,
                    (false, true) => strategies.iter().collect(),
                    (false, false) => {
                        left_out += slow_ones.len();
                        others
                    }
                };
                all.extend(asked.into_iter().map(|&strategy| Setting::Switches(test.setting(strategy, rules, memory))));
            }
        }
        (all, left_out)
    }
}

fn among<T: PartialEq>(one: &T, wanted: &[T]) -> bool {
    wanted.is_empty() || wanted.contains(one)
}
