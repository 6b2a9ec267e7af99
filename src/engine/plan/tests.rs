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
