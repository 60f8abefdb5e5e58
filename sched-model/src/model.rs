//! [`Model`]: a program on a machine, under a strategy: the library's code with a scheduler around it.

use core::marker::PhantomData;
use std::rc::Rc;

use lazytlb::any::AnyPlatform;
use lazytlb_core::mm_switch::{BroadcastFlush, IpiFlush, IpiUnlazy};
use lazytlb_core::platform::Platform;
use lazytlb_hazard::HazardIpi;
use lazytlb_hazard::convert::Convert;
use lazytlb_hazard::general::General;
use lazytlb_machine::{
    Config, Exploration, Found, Limits, Machine, MemoryModel, Recording, Schedule, ScheduleError, Search,
};

use lazytlb_refcount::Refcount;
use lazytlb_refcount::per_cpu::PerCpu;
use lazytlb_shootdown::arm64::AsidRule;
use lazytlb_shootdown::plain::PlainRule;
use lazytlb_shootdown::power_radix::Radix;
use lazytlb_shootdown::x86::X86;
use lazytlb_shootdown::{Arm64, Plain, PowerRadix, X86_6_12, X86_6_14, X86Broadcast};

use crate::accounted::Accounted;
use crate::mutants::{Mutant, Of, Wrong};
use crate::platform::{FROM, Lab, MmData, SLOTS, TRIM, WrongBroadcast, set_up, watched};
use crate::program::Program;
use crate::strategies::{Rules, Strategy, WithStrategy};
use crate::watch::Watch;
use crate::worker::Worker;
use crate::world::World;
use crate::wrapped_mutants::{WrongBatched, WrongDeadline, WrongIpi};

/// Tasks that roam never end by themselves: a search goes as deep as there are states.
const ROAMING_STEPS: u64 = 100_000_000;

/// On what a program runs.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Setting {
    /// The strategy.
    pub strategy: Strategy,
    /// The MMU's rules.
    pub rules: Rules,
    /// The memory model.
    pub memory: MemoryModel,
    /// Labels of accesses and fences that have no effect: planted bugs.
    pub dropped: Vec<String>,
    /// Labels of accesses and fences that order nothing: planted bugs.
    pub relaxed: Vec<String>,
    /// A step of the strategy that does something else: a planted bug.
    pub mutant: Option<Mutant>,
}

impl Setting {
    /// Without planted bugs.
    pub fn new(strategy: Strategy, rules: Rules, memory: MemoryModel) -> Setting {
        Setting { strategy, rules, memory, dropped: Vec::new(), relaxed: Vec::new(), mutant: None }
    }
}

/// What schedules of a program in a setting are for.
fn fingerprint(program: &Program, setting: &Setting) -> u64 {
    // What is not there, or makes no difference, stays out, so that schedules fit that were kept before there was such a thing.
    let program = format!("{program:?}").replace(", roam: None", "");
    let setting = format!("{setting:?}").replace(", relaxed: []", "");
    Schedule::fingerprint(&program, &setting)
}

/// A program on a machine's rules, still without a strategy.
struct OnRules<'a, R> {
    program: &'a Program,
    setting: &'a Setting,
    rules: PhantomData<R>,
}

impl<R: 'static> WithStrategy<Lab<R>> for OnRules<'_, R>
where
    Lab<R>: Platform<MmData = MmData>,
{
    type Output = Model;

    fn call<S: Accounted<Lab<R>>>(self, strategy: S) -> Model {
        Model::with::<R, _>(self.program, self.setting, strategy)
    }
}

/// A program on a machine, ready to be explored.
#[derive(Debug)]
pub struct Model {
    machine: Machine,
    watch: Rc<Watch>,
    fingerprint: u64,
    mutant: Option<Mutant>,
}

impl Model {
    /// Sets the machine up as the program wants it at the start.
    ///
    /// # Panics
    /// If the program names a task or an address space that it does not have.
    pub fn new(program: &Program, setting: &Setting) -> Model {
        let Some(mutant) = setting.mutant else { return Self::right(program, setting) };
        match mutant.of() {
            Of::Nobody => Self::right(program, setting),
            Of::Rules(rules) => Self::wrong_rules(program, setting, mutant, rules),
            of if setting.rules == Rules::Ipi => Self::wrong_strategy::<IpiFlush>(program, setting, of),
            of if setting.rules == Rules::Broadcast => Self::wrong_strategy::<BroadcastFlush>(program, setting, of),
            _ => panic!("a mutant of a strategy does not run on {}", setting.rules),
        }
    }

    /// Nothing of the library is wrong.
    fn right(program: &Program, setting: &Setting) -> Model {
        match setting.rules {
            Rules::Ipi => Self::on_rules::<IpiFlush>(program, setting),
            Rules::IpiUnlazy => Self::on_rules::<IpiUnlazy>(program, setting),
            Rules::Broadcast => Self::on_rules::<BroadcastFlush>(program, setting),
            Rules::X86Linux612 => Self::on_rules::<X86_6_12<SLOTS>>(program, setting),
            Rules::X86Linux614 => Self::on_rules::<X86_6_14<SLOTS, TRIM>>(program, setting),
            Rules::X86Broadcast => Self::on_rules::<X86Broadcast<SLOTS, TRIM, FROM>>(program, setting),
            Rules::Plain => Self::on_rules::<Plain>(program, setting),
            Rules::PowerRadix => Self::on_rules::<PowerRadix>(program, setting),
            Rules::Arm64 => Self::on_rules::<Arm64>(program, setting),
        }
    }

    /// A strategy with a step wrong, whatever strategy is named.
    fn wrong_strategy<R: 'static>(program: &Program, setting: &Setting, of: Of) -> Model
    where
        Lab<R>: AnyPlatform + Platform<MmData = MmData>,
    {
        match of {
            Of::Convert => Self::with::<R, _>(program, setting, Convert::<Wrong>::new()),
            Of::General => Self::with::<R, _>(program, setting, General::<Wrong>::new()),
            Of::Ipi => Self::with::<R, _>(program, setting, WrongIpi),
            Of::PerCpu => Self::with::<R, _>(program, setting, PerCpu::<Wrong>::new()),
            Of::Deadline => Self::with::<R, _>(program, setting, WrongDeadline),
            Of::Batched => Self::with::<R, _>(program, setting, WrongBatched),
            Of::Nobody | Of::Rules(_) => unreachable!("no strategy's"),
        }
    }

    /// A rule with a step wrong, under the strategy of the mutant, whatever is named.
    fn wrong_rules(program: &Program, setting: &Setting, mutant: Mutant, rules: Rules) -> Model {
        let evicts = mutant.strategy() == Strategy::HazardIpi;
        match rules {
            Rules::X86Linux612 if evicts => Self::with::<X86<Wrong, SLOTS>, _>(program, setting, HazardIpi::new()),
            Rules::X86Linux612 => Self::with::<X86<Wrong, SLOTS>, _>(program, setting, Refcount),
            Rules::X86Broadcast => Self::with::<WrongBroadcast, _>(program, setting, Refcount),
            Rules::Plain if evicts => Self::with::<PlainRule<Wrong>, _>(program, setting, HazardIpi::new()),
            Rules::Plain => Self::with::<PlainRule<Wrong>, _>(program, setting, Refcount),
            Rules::PowerRadix => Self::with::<Radix<Wrong>, _>(program, setting, Refcount),
            Rules::Arm64 => Self::with::<AsidRule<Wrong>, _>(program, setting, Refcount),
            other => unreachable!("no mutant is of {other}"),
        }
    }

    fn on_rules<R: 'static>(program: &Program, setting: &Setting) -> Model
    where
        Lab<R>: AnyPlatform + Platform<MmData = MmData>,
    {
        setting.strategy.with(OnRules { program, setting, rules: PhantomData::<R> })
    }

    fn with<R: 'static, S>(program: &Program, setting: &Setting, strategy: S) -> Model
    where
        Lab<R>: Platform<MmData = MmData>,
        S: Accounted<Lab<R>>,
    {
        let own_cpu = Worker::cpu_in(program).filter(|_| strategy.needs_worker());
        let config = Config {
            cpus: program.cpus() + usize::from(own_cpu.is_some()),
            memory: setting.memory,
            dropped: setting.dropped.clone(),
            relaxed: setting.relaxed.clone(),
            ticks: program.roam.is_some(),
            ends: program.ends(),
            max_steps: if program.roam.is_some() { ROAMING_STEPS } else { Config::default().max_steps },
            // As much as the program needs: memory that nobody uses costs time in each execution all the same.
            bytes: 8192 + 2048 * (program.mms.len() + program.cpus() + 1) + 512 * program.tasks.len(),
            ..Config::default()
        };
        let machine = Machine::new(config);
        let set_up = || set_up(&machine, || World::<R, S>::set_up(&machine, program, strategy));
        let watch = Mutant::planted(setting.mutant, set_up);
        let fingerprint = fingerprint(program, setting);
        Model { machine, watch, fingerprint, mutant: setting.mutant }
    }

    /// What each CPU is on and what holds each mm, as the last execution has left them.
    pub(crate) fn facts(&self) -> Vec<String> {
        self.watch.facts(&self.machine)
    }

    /// The labels whose accesses have no effect, or order nothing.
    pub(crate) fn taken_away(&self) -> impl Iterator<Item = &String> {
        let config = self.machine.config();
        config.dropped.iter().chain(&config.relaxed)
    }

    /// The step of the strategy that does something else.
    pub(crate) fn mutant(&self) -> Option<Mutant> {
        self.mutant
    }

    /// What schedules of this model are for.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The machine runs.
    fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        Mutant::planted(self.mutant, || watched(&self.watch, f))
    }

    /// Explores the program. `progress` is told the number of executions now and then.
    pub fn explore(&self, search: Search, limits: Limits, progress: impl FnMut(u64)) -> Exploration {
        let mut exploration = self.run(|| self.machine.explore_with(search, limits, progress));
        for found in &mut exploration.found {
            found.schedule.program = self.fingerprint;
        }
        exploration
    }

    /// Looks for the execution with the fewest preemptions that shows the same.
    pub fn shrink(&self, found: &Found) -> Found {
        const EXECUTIONS: u64 = 200_000;
        self.run(|| self.machine.shrink(found, EXECUTIONS))
    }

    /// Replays a schedule and writes down what happens.
    ///
    /// # Errors
    /// If it does not fit this model.
    pub fn replay(&self, schedule: &Schedule) -> Result<Recording, ScheduleError> {
        self.run(|| self.machine.replay(schedule, self.fingerprint))
    }
}
