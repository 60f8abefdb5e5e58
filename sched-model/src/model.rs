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

use crate::mutants::{
    BackupFirst, CountAfterGive, DropBeforeLoad, DropInInterrupt, EmptiedEarly, EvictsIsolated, JudgeBeforeTaking,
    LooksTooSoon, Mutant, NoSecondLook, StaleSlot, WildcardHolds,
};
use crate::platform::{FROM, Lab, MmData, SLOTS, TRIM, WrongBroadcast, set_up, watched};
use crate::program::Program;
use crate::rule_mutants::{
    FlushesItsOwn, ForgetsLazies, KeepsItsAsids, KeepsItsTlb, KeepsOldContexts, LeavesAndEnters, LooksAtPrev,
    NeverFlushes, OnlyBroadcasts, OthersAreLazy, ReservesOnce, ResetsMask, SharesAsids, SharesReserved, SkipsLazies,
    SkipsTlbsync, SleepsOnItsTlb, SyncsElsewhere, TrustsUsers, Unpinned,
};
use crate::strategies::{Accounted, Rules, Strategy, Unprotected, WithStrategy};
use crate::watch::Watch;
use crate::world::World;

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

    /// What every schedule is for: a number that changes with the setting.
    fn fingerprint(&self) -> u64 {
        // What does not make a difference stays out, so that schedules fit that were kept before there was such a thing.
        let text = format!("{self:?}").replace(", relaxed: []", "");
        text.bytes().fold(0x9ae1_6a3b_2f90_404f, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
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
        match setting.mutant {
            Some(Mutant::SkipsLazies) => return Self::on_wrong_rules::<X86<SkipsLazies, SLOTS>>(program, setting),
            Some(Mutant::LeavesAndEnters) => {
                return Self::on_wrong_rules::<PlainRule<LeavesAndEnters>>(program, setting);
            }
            Some(Mutant::LooksAtPrev) => {
                return Self::with::<PlainRule<LooksAtPrev>, _>(program, setting, HazardIpi::new());
            }
            Some(Mutant::OthersAreLazy) => return Self::on_wrong_rules::<Radix<OthersAreLazy>>(program, setting),
            Some(Mutant::ResetsMask) => return Self::on_wrong_rules::<Radix<ResetsMask>>(program, setting),
            Some(Mutant::TrustsUsers) => return Self::on_wrong_rules::<Radix<TrustsUsers>>(program, setting),
            Some(Mutant::Unpinned) => return Self::on_wrong_rules::<Radix<Unpinned>>(program, setting),
            Some(Mutant::KeepsItsTlb) => return Self::on_wrong_rules::<Radix<KeepsItsTlb>>(program, setting),
            Some(Mutant::ForgetsLazies) => return Self::on_wrong_rules::<AsidRule<ForgetsLazies>>(program, setting),
            Some(Mutant::FlushesItsOwn) => return Self::on_wrong_rules::<AsidRule<FlushesItsOwn>>(program, setting),
            Some(Mutant::NeverFlushes) => return Self::on_wrong_rules::<AsidRule<NeverFlushes>>(program, setting),
            Some(Mutant::SharesReserved) => return Self::on_wrong_rules::<AsidRule<SharesReserved>>(program, setting),
            Some(Mutant::KeepsOldContexts) => {
                return Self::on_wrong_rules::<AsidRule<KeepsOldContexts>>(program, setting);
            }
            Some(Mutant::SleepsOnItsTlb) => return Self::on_wrong_rules::<AsidRule<SleepsOnItsTlb>>(program, setting),
            Some(Mutant::ReservesOnce) => return Self::on_wrong_rules::<AsidRule<ReservesOnce>>(program, setting),
            Some(Mutant::SkipsTlbsync) => {
                return Self::on_wrong_rules::<WrongBroadcast<SkipsTlbsync>>(program, setting);
            }
            Some(Mutant::SyncsElsewhere) => {
                return Self::on_wrong_rules::<WrongBroadcast<SyncsElsewhere>>(program, setting);
            }
            Some(Mutant::OnlyBroadcasts) => {
                return Self::on_wrong_rules::<WrongBroadcast<OnlyBroadcasts>>(program, setting);
            }
            Some(Mutant::SharesAsids) => return Self::on_wrong_rules::<WrongBroadcast<SharesAsids>>(program, setting),
            Some(Mutant::KeepsItsAsids) => {
                return Self::on_wrong_rules::<WrongBroadcast<KeepsItsAsids>>(program, setting);
            }
            _ => {}
        }
        match setting.rules {
            Rules::Ipi => match setting.mutant.filter(|&mutant| mutant != Mutant::Caller) {
                Some(mutant) => Self::wrong_strategy::<IpiFlush>(program, setting, mutant),
                None => setting.strategy.with(OnRules { program, setting, rules: PhantomData::<IpiFlush> }),
            },
            Rules::Broadcast => match setting.mutant.filter(|&mutant| mutant != Mutant::Caller) {
                Some(mutant) => Self::wrong_strategy::<BroadcastFlush>(program, setting, mutant),
                None => Self::on_rules::<BroadcastFlush>(program, setting),
            },
            Rules::IpiUnlazy => Self::on_rules::<IpiUnlazy>(program, setting),
            Rules::X86Linux612 => Self::on_rules::<X86_6_12<SLOTS>>(program, setting),
            Rules::X86Linux614 => Self::on_rules::<X86_6_14<SLOTS, TRIM>>(program, setting),
            Rules::X86Broadcast => Self::on_rules::<X86Broadcast<SLOTS, TRIM, FROM>>(program, setting),
            Rules::Plain => Self::on_rules::<Plain>(program, setting),
            Rules::PowerRadix => Self::on_rules::<PowerRadix>(program, setting),
            Rules::Arm64 => Self::on_rules::<Arm64>(program, setting),
        }
    }

    /// A strategy with a step wrong, whatever strategy is named.
    fn wrong_strategy<R: 'static>(program: &Program, setting: &Setting, mutant: Mutant) -> Model
    where
        Lab<R>: AnyPlatform + Platform<MmData = MmData>,
    {
        let on = OnRules { program, setting, rules: PhantomData::<R> };
        match mutant {
            Mutant::CountAfterGive => on.call(Convert::<CountAfterGive>::new()),
            Mutant::StaleSlot => on.call(Convert::<StaleSlot>::new()),
            Mutant::JudgeBeforeTaking => on.call(Convert::<JudgeBeforeTaking>::new()),
            Mutant::BackupFirst => on.call(General::<BackupFirst>::new()),
            Mutant::WildcardHolds => on.call(General::<WildcardHolds>::new()),
            Mutant::NoSecondLook => on.call(General::<NoSecondLook>::new()),
            Mutant::DropInInterrupt => on.call(Convert::<DropInInterrupt>::new()),
            Mutant::EmptiedEarly => on.call(Convert::<EmptiedEarly>::new()),
            Mutant::LooksTooSoon => on.call(LooksTooSoon),
            Mutant::DropBeforeLoad => on.call(PerCpu::<DropBeforeLoad>::new()),
            Mutant::EvictsIsolated => on.call(EvictsIsolated),
            _ => unreachable!("{mutant:?} is no strategy's"),
        }
    }

    /// Strategies are chosen at boot on all rules but one: there are too many pairs for a type each.
    ///
    /// # Panics
    /// If a mutant of a strategy is asked for, which does not run here.
    fn on_rules<R: 'static>(program: &Program, setting: &Setting) -> Model
    where
        Lab<R>: AnyPlatform + Platform<MmData = MmData>,
    {
        let mutant = setting.mutant.filter(|&mutant| mutant != Mutant::Caller);
        assert!(mutant.is_none(), "{mutant:?} does not run on {}", setting.rules);
        match setting.strategy.at_boot() {
            Some(strategy) => Self::with::<R, _>(program, setting, strategy),
            None => Self::with::<R, _>(program, setting, Unprotected),
        }
    }

    /// A rule with a step wrong, whatever rules are named; under [`Refcount`], whatever strategy is.
    fn on_wrong_rules<R: 'static>(program: &Program, setting: &Setting) -> Model
    where
        Lab<R>: Platform<MmData = MmData>,
    {
        Self::with::<R, _>(program, setting, Refcount)
    }

    fn with<R: 'static, S>(program: &Program, setting: &Setting, strategy: S) -> Model
    where
        Lab<R>: Platform<MmData = MmData>,
        S: Accounted<Lab<R>>,
    {
        let config = Config {
            cpus: program.cpus() + usize::from(strategy.needs_worker()),
            memory: setting.memory,
            dropped: setting.dropped.clone(),
            relaxed: setting.relaxed.clone(),
            ticks: program.roam.is_some(),
            max_steps: if program.roam.is_some() { ROAMING_STEPS } else { Config::default().max_steps },
            // As much as the program needs: memory that nobody uses costs time in each execution all the same.
            bytes: 8192 + 2048 * (program.mms.len() + program.cpus() + 1) + 512 * program.tasks.len(),
            ..Config::default()
        };
        let machine = Machine::new(config);
        let watch = set_up(&machine, || World::<R, S>::set_up(&machine, program, strategy));
        let fingerprint = program.fingerprint() ^ setting.fingerprint();
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

    /// Explores the program. `progress` is told the number of executions now and then.
    pub fn explore(&self, search: Search, limits: Limits, progress: impl FnMut(u64)) -> Exploration {
        let mut exploration = watched(&self.watch, || self.machine.explore_with(search, limits, progress));
        for found in &mut exploration.found {
            found.schedule.program = self.fingerprint;
        }
        exploration
    }

    /// Looks for the execution with the fewest preemptions that shows the same.
    pub fn shrink(&self, found: &Found) -> Found {
        const EXECUTIONS: u64 = 200_000;
        watched(&self.watch, || self.machine.shrink(found, EXECUTIONS))
    }

    /// Replays a schedule and writes down what happens.
    ///
    /// # Errors
    /// If it does not fit this model.
    pub fn replay(&self, schedule: &Schedule) -> Result<Recording, ScheduleError> {
        watched(&self.watch, || self.machine.replay(schedule, self.fingerprint))
    }
}
