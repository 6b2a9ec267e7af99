{
  description = "Boots a cluster of virtual machines, provisions OpenStack on it, and proves from outside that it works";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      system = "x86_64-linux";
      pkgs = nixpkgs.legacyPackages.${system};
      manifest = (builtins.fromTOML (builtins.readFile ./Cargo.toml)).package;

      # What the program calls. A lab needs QEMU; recipes need the rest.
      tools = [ pkgs.qemu pkgs.mmdebstrap pkgs.e2fsprogs ];

      stackproof = pkgs.rustPlatform.buildRustPackage {
        pname = manifest.name;
        version = manifest.version;
        src = self;
        cargoLock.lockFile = ./Cargo.lock;
        nativeBuildInputs = [ pkgs.makeWrapper ];
        # Some unit tests run QEMU on firmware of our own, or make and convert disks.
        nativeCheckInputs = tools;
        # Tests that need guests run as apps.vmtest: a build sandbox has no images.
        cargoTestFlags = [ "--lib" "--bins" ];
        postInstall = ''
          wrapProgram $out/bin/stackproof --prefix PATH : ${pkgs.lib.makeBinPath tools}
        '';
        meta = {
          inherit (manifest) description;
          license = [ pkgs.lib.licenses.asl20 pkgs.lib.licenses.mit ];
          mainProgram = "stackproof";
          platforms = [ system ];
        };
      };

      rust = [ pkgs.cargo pkgs.rustc pkgs.rustfmt pkgs.clippy pkgs.cargo-nextest pkgs.gcc ];

      e2e = pkgs.writeShellApplication {
        name = "stackproof-e2e";
        text = ''exec ${stackproof}/bin/stackproof e2e "$@"'';
      };

      vmtest = pkgs.writeShellApplication {
        name = "stackproof-vmtest";
        runtimeInputs = tools ++ rust;
        # Run in a source tree: the tests and their labs are there.
        text = ''exec cargo xtask vmtest "$@"'';
      };

      app = script: { type = "app"; program = "${script}/bin/${script.name}"; };
    in
    {
      packages.${system}.default = stackproof;

      apps.${system} = {
        default = self.apps.${system}.e2e;
        e2e = app e2e;
        vmtest = app vmtest;
      };

      checks.${system} = {
        # Building the package runs the unit tests.
        package = stackproof;
        fmt = pkgs.runCommand "stackproof-fmt" { nativeBuildInputs = [ pkgs.cargo pkgs.rustfmt ]; } ''
          export CARGO_HOME=$TMPDIR
          cd ${self}
          cargo fmt --all --check
          touch $out
        '';
      };

      devShells.${system}.default = pkgs.mkShell {
        packages = tools ++ rust ++ [ pkgs.openssl ];
      };
    };
}
