use super::*;
pub async fn run(_session: Session, _args: args::E2e) -> Result<ExitCode> {
    todo!()
}
