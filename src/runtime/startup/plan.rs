//! The steps of a start, decided from what is on the disk.

/// What a start finds, before it changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub log: FoundLog,
    pub installs: Installs,
    pub configuration: FoundConfiguration,
    /// Rebuilt views wait to be installed under the configuration to start under.
    pub has_builds: bool,
}

/// The log, as far as the order of the steps depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FoundLog {
    /// It has no segment.
    Missing {
        /// Yet the folder holds something that was derived from a log.
        has_views: bool,
    },
    Present {
        /// Its last frame is a configuration that no start could apply.
        ends_unapplied: bool,
    },
}

/// How far an earlier start came in installing rebuilt views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Installs {
    /// None was begun, or all are complete.
    None,
    /// A view is complete and not yet where the old one is.
    ToMove,
    /// Every view is in place; the operators do not yet continue from those that built them.
    ToTransfer,
}

/// The configuration that the log ends under, without a frame that no start could apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FoundConfiguration {
    /// None: the log is empty.
    Missing,
    /// The one to start under.
    Same,
    Changed,
}

/// One step of a start. What it changes is durable before the next step begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// End with an error: a new log would contradict the views.
    RefuseMissingLog,
    /// Move complete rebuilt views to where the old ones are: before anything is opened, because
    /// the old ones may not fit the configuration.
    MoveBuilds,
    /// Read how far each view of the stored configuration has committed.
    ReadCheckpoints,
    /// Open the log for writing, which cuts a torn tail; refuse to where a view has committed
    /// records of it.
    OpenLog,
    /// Remove the log's last frame, a configuration that no start could apply.
    RemoveConfiguration,
    /// Let the operators continue from those that built the installed views.
    TransferState,
    /// Refuse what existing tables and indexes cannot become, unless they are replaced.
    CheckCompatible,
    /// Open every table for reading: refuse what would fail after the frame was appended.
    TryOpening,
    /// Bring every view, and a snapshot, to the log's end under the stored configuration.
    Drain,
    /// Bring the rebuilt views to the log's end; from here on they will be installed. One that
    /// cannot be completed replaces nothing.
    CompleteBuilds,
    /// Append the frame from which on the configuration to start under applies.
    AppendConfiguration,
    /// As [`Step::MoveBuilds`] and [`Step::TransferState`], for the views just completed.
    InstallBuilds,
    /// Open the views for writing; refuse one that is ahead of the log. On an error a configuration
    /// that was just appended is removed again.
    OpenViews,
}

/// The steps from what was found to a folder at work under the configuration. Pure.
pub(super) fn plan(found: &Found) -> Vec<Step> {
    let log = plan_log(found.log);
    if log.contains(&Step::RefuseMissingLog) {
        return log;
    }
    // A build belongs to one log, so nothing is left to install without it.
    let has_log = matches!(found.log, FoundLog::Present { .. });
    let moves = has_log && found.installs == Installs::ToMove;
    let transfers = has_log && found.installs != Installs::None;
    [
        due(Step::MoveBuilds, moves),
        log,
        due(Step::TransferState, transfers),
        plan_switch(found.configuration, found.has_builds),
        vec![Step::OpenViews],
    ]
    .concat()
}

/// The steps that open the log. Pure.
pub(super) fn plan_log(log: FoundLog) -> Vec<Step> {
    match log {
        FoundLog::Missing { has_views: true } => vec![Step::RefuseMissingLog],
        FoundLog::Missing { has_views: false } => vec![Step::OpenLog],
        FoundLog::Present { ends_unapplied } => [
            vec![Step::ReadCheckpoints, Step::OpenLog],
            due(Step::RemoveConfiguration, ends_unapplied),
        ]
        .concat(),
    }
}

/// The steps to another configuration, to rebuilt views, or to both. No frame is applied under two
/// configurations: everything reaches the log's end under the stored one before another is
/// appended. Pure.
fn plan_switch(configuration: FoundConfiguration, has_builds: bool) -> Vec<Step> {
    let has_stored = configuration != FoundConfiguration::Missing;
    let is_changed = configuration != FoundConfiguration::Same;
    if !is_changed && !has_builds {
        return Vec::new();
    }
    [
        due(Step::CheckCompatible, has_stored),
        due(Step::TryOpening, is_changed),
        due(Step::Drain, has_stored),
        due(Step::CompleteBuilds, has_builds),
        // Once more without the builds that could not be completed.
        due(Step::CheckCompatible, has_stored && has_builds),
        due(Step::AppendConfiguration, is_changed),
        due(Step::InstallBuilds, has_builds),
    ]
    .concat()
}

fn due(step: Step, is_due: bool) -> Vec<Step> {
    if is_due { vec![step] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::FoundConfiguration::{Changed, Missing as Unconfigured, Same};
    use super::FoundLog::{Missing, Present};
    use super::Step::{
        AppendConfiguration, CheckCompatible, CompleteBuilds, Drain, InstallBuilds, MoveBuilds,
        OpenLog, OpenViews, ReadCheckpoints, RefuseMissingLog, RemoveConfiguration, TransferState,
        TryOpening,
    };
    use super::*;

    const INTACT: FoundLog = Present {
        ends_unapplied: false,
    };
    const UNAPPLIED: FoundLog = Present {
        ends_unapplied: true,
    };

    fn found(
        log: FoundLog,
        installs: Installs,
        configuration: FoundConfiguration,
        has_builds: bool,
    ) -> Found {
        Found {
            log,
            installs,
            configuration,
            has_builds,
        }
    }

    /// The plan without the steps that every start takes.
    fn switch(configuration: FoundConfiguration, has_builds: bool) -> Vec<Step> {
        let found = found(INTACT, Installs::None, configuration, has_builds);
        let mut steps = plan(&found);
        assert_eq!(steps.pop(), Some(OpenViews));
        assert_eq!(
            steps.drain(..2).collect::<Vec<_>>(),
            [ReadCheckpoints, OpenLog]
        );
        steps
    }

    #[test]
    fn the_log_is_opened_when_it_agrees_with_the_views() {
        let missing = |has_views| Missing { has_views };
        for (log, configuration, steps) in [
            (missing(true), Unconfigured, vec![RefuseMissingLog]),
            (
                missing(false),
                Unconfigured,
                vec![OpenLog, TryOpening, AppendConfiguration, OpenViews],
            ),
            (INTACT, Same, vec![ReadCheckpoints, OpenLog, OpenViews]),
            // A log whose first configuration was never applied is empty without it.
            (
                UNAPPLIED,
                Unconfigured,
                vec![
                    ReadCheckpoints,
                    OpenLog,
                    RemoveConfiguration,
                    TryOpening,
                    AppendConfiguration,
                    OpenViews,
                ],
            ),
            // Back to the configuration before.
            (
                UNAPPLIED,
                Same,
                vec![ReadCheckpoints, OpenLog, RemoveConfiguration, OpenViews],
            ),
        ] {
            let found = found(log, Installs::None, configuration, false);
            assert_eq!(plan(&found), steps, "{found:?}");
        }
    }

    #[test]
    fn an_install_that_was_begun_is_completed_around_the_opening_of_the_log() {
        for (log, installs, steps) in [
            (
                INTACT,
                Installs::ToMove,
                vec![
                    MoveBuilds,
                    ReadCheckpoints,
                    OpenLog,
                    TransferState,
                    OpenViews,
                ],
            ),
            (
                INTACT,
                Installs::ToTransfer,
                vec![ReadCheckpoints, OpenLog, TransferState, OpenViews],
            ),
            (
                Missing { has_views: true },
                Installs::ToMove,
                vec![RefuseMissingLog],
            ),
            (
                Missing { has_views: false },
                Installs::ToMove,
                vec![OpenLog, OpenViews],
            ),
        ] {
            let found = found(log, installs, Same, false);
            assert_eq!(plan(&found), steps, "{found:?}");
        }
    }

    #[test]
    fn the_stored_configuration_is_drained_before_another_is_appended() {
        assert_eq!(switch(Same, false), Vec::new());
        assert_eq!(
            switch(Changed, false),
            [CheckCompatible, TryOpening, Drain, AppendConfiguration]
        );
        // Only rebuilt views: they are installed at the end of a drained log.
        assert_eq!(
            switch(Same, true),
            [
                CheckCompatible,
                Drain,
                CompleteBuilds,
                CheckCompatible,
                InstallBuilds
            ]
        );
        assert_eq!(
            switch(Changed, true),
            [
                CheckCompatible,
                TryOpening,
                Drain,
                CompleteBuilds,
                CheckCompatible,
                AppendConfiguration,
                InstallBuilds
            ]
        );
    }

    fn all_found() -> Vec<Found> {
        let mut all = Vec::new();
        for log in [
            Missing { has_views: true },
            Missing { has_views: false },
            INTACT,
            UNAPPLIED,
        ] {
            for installs in [Installs::None, Installs::ToMove, Installs::ToTransfer] {
                for configuration in [Unconfigured, Same, Changed] {
                    for has_builds in [false, true] {
                        all.push(found(log, installs, configuration, has_builds));
                    }
                }
            }
        }
        all
    }

    #[test]
    fn every_plan_refuses_or_opens_the_log_once_and_ends_with_the_views() {
        for found in all_found() {
            let steps = plan(&found);
            if steps == [RefuseMissingLog] {
                continue;
            }
            assert_eq!(steps.iter().filter(|s| **s == OpenLog).count(), 1);
            assert_eq!(steps.last(), Some(&OpenViews));
            let opened = steps.iter().position(|s| *s == OpenLog);
            let before = [MoveBuilds, ReadCheckpoints];
            for (at, step) in steps.iter().enumerate().filter(|(_, s)| **s != OpenLog) {
                assert_eq!(Some(at) < opened, before.contains(step), "{steps:?}");
            }
        }
    }

    /// What the next start finds after a step. A configuration that was appended counts as stored;
    /// `CompleteBuilds` alone leaves a build that is found again.
    fn after(mut found: Found, step: Step) -> Found {
        match step {
            OpenLog if matches!(found.log, Missing { .. }) => found.log = INTACT,
            RemoveConfiguration => found.log = INTACT,
            MoveBuilds => found.installs = Installs::ToTransfer,
            TransferState => found.installs = Installs::None,
            // Complete builds of the stored configuration are moved first.
            CompleteBuilds if found.configuration == Same => {
                (found.installs, found.has_builds) = (Installs::ToMove, false);
            }
            AppendConfiguration => {
                found.configuration = Same;
                if found.has_builds {
                    (found.installs, found.has_builds) = (Installs::ToMove, false);
                }
            }
            InstallBuilds => found.installs = Installs::None,
            _ => {}
        }
        found
    }

    #[test]
    fn a_start_that_was_killed_after_any_step_is_completed_by_the_next() {
        let run = |found: Found, steps: &[Step]| steps.iter().fold(found, |f, s| after(f, *s));
        for begun in all_found() {
            // Nothing was built from a log that does not exist or is empty, and the last frame counts
            // as unapplied only while no build exists.
            let has_none = !begun.has_builds && begun.installs == Installs::None;
            let is_possible = match begun.log {
                Missing { has_views } => {
                    !has_views && has_none && begun.configuration == Unconfigured
                }
                UNAPPLIED => has_none,
                _ => has_none || begun.configuration != Unconfigured,
            };
            if !is_possible {
                continue;
            }
            let steps = plan(&begun);
            for killed_after in 0..=steps.len() {
                let next = run(begun, &steps[..killed_after]);
                let end = run(next, &plan(&next));
                let wanted = found(INTACT, Installs::None, Same, false);
                assert_eq!(
                    end, wanted,
                    "{begun:?}, killed after {killed_after} of {steps:?}"
                );
                assert_eq!(
                    plan(&end),
                    [ReadCheckpoints, OpenLog, OpenViews],
                    "{begun:?}"
                );
            }
        }
    }
}
