package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/bench/receiver"
	"attentive.internal/deploy/process"
)

// replica is a running worker.
type replica struct {
	*process.Process
	// sender is how it writes the receiver's host.
	sender string
	ops    string
}

// add starts one more replica and returns when it is ready.
func (f *fleet) add(ctx context.Context) error {
	f.started++
	r := &replica{sender: receiver.Spelling(f.started)}
	var err error
	if r.ops, err = process.FreeAddress(ctx); err != nil {
		return err
	}
	file, err := f.configure(r)
	if err != nil {
		return err
	}
	// It ends with the fleet, not with the phase that it was started in.
	if r.Process, err = process.Start(exec.CommandContext(context.WithoutCancel(ctx), f.program, "run", "--config", file)); err != nil {
		return err
	}
	f.alive = append(f.alive, r)
	return r.Ready(ctx, "http://"+r.ops+"/readyz")
}

// configure writes a replica's configuration and returns its path.
func (f *fleet) configure(r *replica) (string, error) {
	sftpHost, sftpPort, _ := strings.Cut(f.receiver.SFTP, ":")
	_, apiPort, _ := strings.Cut(f.receiver.API, ":")
	relay := account.Relay{
		Head:     fmt.Sprintf("broker: {url: %q, replicas: %d}\nops_address: %q\nlease: %v\n", f.url, f.brokers, r.ops, f.lease),
		SFTPHost: sftpHost, SFTPPort: sftpPort, APIURL: "http://" + r.sender + ":" + apiPort,
		HostKey: f.receiver.HostKey, PublicKey: f.receiver.PublicKey,
	}
	dir := filepath.Join(f.dir, "replica-"+strconv.Itoa(f.started))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	file := filepath.Join(dir, "relay.yaml")
	for name, text := range map[string]string{
		file: relay.YAML(), filepath.Join(dir, account.PassphraseFile): account.Passphrase, filepath.Join(dir, account.TokenFile): account.Token,
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	return file, nil
}

// replace takes old, which has ended or is asked to, out of the fleet, and starts
// another replica instead.
func (f *fleet) replace(ctx context.Context, old *replica) error {
	f.alive = slices.DeleteFunc(f.alive, func(r *replica) bool { return r == old })
	return f.add(ctx)
}

// owner returns the replica that owns the destination, as soon as there is
// exactly one that says so.
func (f *fleet) owner(ctx context.Context) (owner *replica, err error) {
	err = until(ctx, "the owner of "+f.destination, func(ctx context.Context) error {
		owner = nil
		for _, r := range f.alive {
			owned, err := r.owns(ctx, f.destination)
			switch {
			case err != nil:
				return err
			case owned && owner != nil:
				return errors.New("two replicas say that they own it")
			case owned:
				owner = r
			}
		}
		if owner == nil {
			return errors.New("no replica says that it owns it")
		}
		return nil
	})
	return owner, err
}

// owns reads from a replica's metrics whether it owns the destination.
func (r *replica) owns(ctx context.Context, destination string) (bool, error) {
	text, err := get(ctx, "http://"+r.ops+"/metrics")
	return strings.Contains(string(text), fmt.Sprintf("relay_owned{destination=%q} 1\n", destination)), err
}
