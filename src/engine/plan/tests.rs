use super::*;
use crate::engine::resources::{Boxed, File, Ini, Unit};

fn plan(steps: Vec<Step>) -> Plan {
    Plan { steps }
}

fn refusal(steps: Vec<Step>) -> String {
    plan(steps).validate(&["n"]).unwrap_err().to_string()
}

#[test]
fn a_good_plan_gives_its_order() {
    let order = plan(vec![
        Step::new("c", "n").after("b"),
        Step::new("a", "n"),
        Step::new("b", "n").after("a"),
    ])
    .validate(&["n"])
    .unwrap();
    assert_eq!(order.before, [vec![2], vec![], vec![1]]);
    assert!(order.is_before(1, 0) && !order.is_before(0, 1));
}

#[test]
fn names_that_are_wrong_are_named() {
    assert_eq!(refusal(vec![Step::new("a", "n"), Step::new("a", "n")]), "two steps are called a");
    assert_eq!(
        refusal(vec![Step::new("a", "n").after("b")]),
        "step a comes after b, which is not in the plan"
    );
    assert_eq!(refusal(vec![Step::new("a", "m")]), "step a is for the node m, which is not there");
}

#[test]
fn a_cycle_is_named_and_what_only_hangs_on_it_is_not() {
    let text = refusal(vec![
        Step::new("x", "n").after("a"),
        Step::new("a", "n").after("b"),
        Step::new("b", "n").after("c"),
        Step::new("c", "n").after("a"),
    ]);
    assert_eq!(text, "steps wait for one another: a after b after c after a");
    let own = refusal(vec![Step::new("a", "n").after("a")]);
    assert_eq!(own, "steps wait for one another: a after a");
}

#[test]
fn a_resource_declared_twice_on_a_node_is_refused() {
    let file = || File::new("/x", "1");
    let text = refusal(vec![Step::new("a", "n").with(file()), Step::new("b", "n").with(file())]);
    assert_eq!(text, "file /x is declared twice on n: in a and in b");
}

#[test]
fn two_unordered_writers_of_one_path_are_refused() {
    let steps = |b: Step| {
        vec![
            Step::new("a", "n").with(Ini::new("/x").set("a", "b", "c")),
            b.with(File::new("/x", "")),
        ]
    };
    let text = refusal(steps(Step::new("b", "n")));
    assert_eq!(text, "a and b both write /x on n, with no order between them");
    plan(steps(Step::new("b", "n").after("a"))).validate(&["n"]).unwrap();
}

#[test]
fn a_unit_that_starts_before_what_it_reads_is_written_is_refused() {
    let unit = || Unit::new("u").reads(["/x"]);
    let file = || File::new("/x", "");
    let text = refusal(vec![Step::new("a", "n").with(unit()).with(file())]);
    assert_eq!(text, "unit u.service of a reads /x, which a writes without being before it");
    plan(vec![Step::new("a", "n").with(file()).with(unit())]).validate(&["n"]).unwrap();
    let boxed = vec![file().boxed(), unit().boxed()];
    let step = Step { resources: boxed, ..Step::new("a", "n") };
    plan(vec![step]).validate(&["n"]).unwrap();
}

const FIRST: Stage = Stage { rank: 1, name: "first" };
const SECOND: Stage = Stage { rank: 2, name: "second" };
const THIRD: Stage = Stage { rank: 3, name: "third" };

fn staged() -> Plan {
    plan(vec![
        Step::new("c", "n").after("a").after("b").stage(THIRD),
        Step::new("a", "n").stage(FIRST),
        Step::new("b", "n").after("a").stage(SECOND),
        Step::new("b2", "n").after("b").stage(SECOND),
    ])
}

fn ids(plan: &Plan) -> Vec<&str> {
    plan.steps.iter().map(|s| s.id.as_str()).collect()
}

#[test]
fn stages_are_told_in_their_order() {
    assert_eq!(staged().stages(), [FIRST, SECOND, THIRD]);
    assert_eq!(plan(vec![Step::new("a", "n")]).stages(), [Stage::default()]);
}

#[test]
fn a_stage_that_needs_a_later_one_is_refused() {
    let text = refusal(vec![
        Step::new("early", "n").after("late").stage(FIRST),
        Step::new("late", "n").stage(SECOND),
    ]);
    assert_eq!(
        text,
        "step early of stage first comes after late, which is of the later stage second"
    );
}

#[test]
fn every_part_of_a_staged_plan_stands_for_itself_and_together_they_are_the_whole() {
    assert_eq!(ids(&staged().until(SECOND)), ["a", "b", "b2"]);
    let rest = staged().between(Some(FIRST), THIRD);
    assert_eq!(ids(&rest), ["c", "b", "b2"]);
    // Within the part the order stays; to what is done it goes.
    assert_eq!(rest.steps[0].after, ["b"]);
    assert!(rest.steps[1].after.is_empty());
    let parts = [
        staged().until(FIRST),
        staged().between(Some(FIRST), SECOND),
        staged().between(Some(SECOND), THIRD),
    ];
    let mut all: Vec<String> = Vec::new();
    for part in &parts {
        part.validate(&["n"]).unwrap();
        all.extend(part.steps.iter().map(|s| s.id.clone()));
    }
    assert_eq!(all, ["a", "b", "b2", "c"]);
    assert!(staged().between(Some(THIRD), THIRD).steps.is_empty());
}
