{
  description = "Boots a cluster of virtual machines, provisions OpenStack on it, and proves from outside that it works";

  # NixOS 26.05 is the oldest release with Rust 1.95.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      system = "x86_64-linux";
      # What is used here for the first time goes into fixtures/nix-stub/attributes.toml as well.
      pkgs = nixpkgs.legacyPackages.${system};
      lib = pkgs.lib;
      manifest = (builtins.fromTOML (builtins.readFile ./Cargo.toml)).package;

      # What cargo reads. Documents are left out, so that a changed one rebuilds nothing.
      source = lib.fileset.toSource {
        root = ./.;
        fileset = lib.fileset.unions [
          ./Cargo.lock
          ./Cargo.toml
          ./build.rs
          ./examples
          ./fixtures/images/qcow2
          ./fixtures/images/sums
          ./fixtures/qemu
          ./images
          ./rustfmt.toml
          ./src
          ./tests
          ./vmtests
          ./xtask
        ];
      };

      # Without graphics and sound, and from the binary cache: the tests of NixOS run on it.
      qemu = pkgs.qemu_test;

      stackproof = pkgs.rustPlatform.buildRustPackage {
        pname = manifest.name;
        version = manifest.version;
        src = source;
        cargoLock.lockFile = ./Cargo.lock;
        nativeBuildInputs = [ pkgs.makeWrapper ];
        # Unit tests run QEMU on firmware of our own, and setpriv (util-linux).
        nativeCheckInputs = [ qemu pkgs.util-linux ];
        # Tests that need guests run as apps.vmtest: a build sandbox has no images.
        cargoTestFlags = [ "--lib" "--bins" ];
        # A lab needs QEMU alone. What builds an image (mmdebstrap, apt, mke2fs) and newuidmap are the
        # host's: nixpkgs has no mmdebstrap, and its newuidmap is not set-uid.
        postInstall = ''
          wrapProgram $out/bin/stackproof --prefix PATH : ${lib.makeBinPath [ qemu ]}
        '';
        meta = {
          inherit (manifest) description;
          license = [ lib.licenses.asl20 lib.licenses.mit ];
          mainProgram = "stackproof";
          platforms = [ system ];
        };
      };

      rust = [ pkgs.cargo pkgs.rustc pkgs.rustfmt pkgs.clippy pkgs.cargo-nextest pkgs.gcc ];

      app = script: {
        type = "app";
        program = lib.getExe (pkgs.writeShellApplication script);
        meta = { inherit (script.meta) description; };
      };
    in
    {
      packages.${system}.default = stackproof;

      apps.${system} = {
        default = self.apps.${system}.e2e;

        e2e = app {
          name = "stackproof-e2e";
          text = ''exec ${lib.getExe stackproof} e2e "$@"'';
          meta.description = "Boots an OpenStack cloud in virtual machines and proves from outside that it works";
        };

        # Runs in a source tree: the tests and their labs are there. Without the image nearly all of
        # them would be listed as ignored, so nothing is run where it cannot be built.
        vmtest = app {
          name = "stackproof-vmtest";
          runtimeInputs = [ qemu ] ++ rust;
          text = ''
            ${lib.getExe stackproof} images build probe-guest
            exec cargo xtask vmtest "$@"
          '';
          meta.description = "Runs the tests against real guests, in a source tree";
        };
      };

      checks.${system} = {
        # Building the package runs the unit tests.
        package = stackproof;
        fmt = pkgs.runCommand "stackproof-fmt" { nativeBuildInputs = [ pkgs.cargo pkgs.rustfmt ]; } ''
          export CARGO_HOME=$TMPDIR
          cd ${source}
          cargo fmt --all --check
          touch $out
        '';
      };

      devShells.${system}.default = pkgs.mkShell {
        # openssl is a peer of `stackproof bench`.
        packages = [ qemu pkgs.openssl ] ++ rust;
      };
    };
}
