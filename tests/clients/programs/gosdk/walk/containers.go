package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
	"github.com/docker/go-connections/nat"
)

// made creates a container, hands it to use, and removes it.
func made(
	ctx context.Context, api *client.Client, config *container.Config, host *container.HostConfig,
	use func(id string) error,
) error {
	config.Image = image
	answer, err := api.ContainerCreate(ctx, config, host, nil, nil, "")
	if err != nil {
		return err
	}
	used := use(answer.ID)
	removed := api.ContainerRemove(ctx, answer.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
	return first(used, removed)
}

// started also starts it.
func started(
	ctx context.Context, api *client.Client, config *container.Config, host *container.HostConfig,
	use func(id string) error,
) error {
	return made(ctx, api, config, host, func(id string) error {
		if err := api.ContainerStart(ctx, id, container.StartOptions{}); err != nil {
			return err
		}
		return use(id)
	})
}

func ended(ctx context.Context, api *client.Client, id string, condition container.WaitCondition) (int64, error) {
	statuses, errs := api.ContainerWait(ctx, id, condition)
	select {
	case status := <-statuses:
		if status.Error != nil {
			return 0, fmt.Errorf("wait: %s", status.Error.Message)
		}
		return status.StatusCode, nil
	case err := <-errs:
		return 0, err
	}
}

func state(ctx context.Context, api *client.Client, id, wanted string) error {
	found, err := api.ContainerInspect(ctx, id)
	if err != nil {
		return err
	}
	return want("state", found.State.Status, wanted)
}

func walkContainer(ctx context.Context, api *client.Client) error {
	timeout, pids := 1, int64(50)
	port, err := nat.NewPort("tcp", "80")
	if err != nil {
		return err
	}
	config := &container.Config{
		Cmd:          []string{"sleep", "600"},
		Env:          []string{"A=b"},
		ExposedPorts: nat.PortSet{port: {}},
		Labels:       map[string]string{"walk": "container"},
	}
	host := &container.HostConfig{
		PortBindings:  nat.PortMap{port: {{HostIP: "127.0.0.1"}}},
		RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyUnlessStopped},
		Resources:     container.Resources{Memory: 64 << 20, PidsLimit: &pids},
		Tmpfs:         map[string]string{"/scratch": "size=1m"},
	}
	return made(ctx, api, config, host, func(id string) error {
		if err := first(
			state(ctx, api, id, "created"), api.ContainerStart(ctx, id, container.StartOptions{}),
			state(ctx, api, id, "running"),
		); err != nil {
			return err
		}
		found, err := api.ContainerInspect(ctx, id)
		if err != nil {
			return err
		}
		if number, err := strconv.Atoi(found.NetworkSettings.Ports[port][0].HostPort); err != nil || number == 0 {
			return fmt.Errorf("no host port in %v", found.NetworkSettings.Ports)
		}
		if err := first(
			want("memory", found.HostConfig.Memory, int64(64<<20)),
			want("pids", *found.HostConfig.PidsLimit, int64(50)),
			want("restart policy", found.HostConfig.RestartPolicy.Name, container.RestartPolicyUnlessStopped),
		); err != nil {
			return err
		}
		selected := filters.NewArgs(filters.Arg("label", "walk=container"), filters.Arg("status", "running"))
		listed, err := api.ContainerList(ctx, container.ListOptions{Filters: selected, Size: true})
		if err != nil {
			return err
		}
		if len(listed) != 1 || listed[0].ID != id || listed[0].Ports[0].PrivatePort != 80 {
			return fmt.Errorf("the list is %+v", listed)
		}
		processes, err := api.ContainerTop(ctx, id, []string{"-o", "pid,args"})
		if err != nil || len(processes.Processes) != 1 || processes.Processes[0][1] != "sleep 600" {
			return fmt.Errorf("top: %+v %w", processes, err)
		}
		shares := container.UpdateConfig{
			Resources:     container.Resources{CPUShares: 512},
			RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
		}
		if _, err := api.ContainerUpdate(ctx, id, shares); err != nil {
			return err
		}
		if err := first(
			api.ContainerRename(ctx, id, "walked"),
			api.ContainerPause(ctx, "walked"), state(ctx, api, id, "paused"),
			api.ContainerUnpause(ctx, "walked"), state(ctx, api, id, "running"),
			api.ContainerRestart(ctx, id, container.StopOptions{Timeout: &timeout, Signal: "SIGKILL"}),
			state(ctx, api, id, "running"),
			api.ContainerKill(ctx, id, "SIGKILL"),
		); err != nil {
			return err
		}
		code, err := ended(ctx, api, id, container.WaitConditionNotRunning)
		if err := first(err, want("exit code", code, int64(137)), state(ctx, api, id, "exited")); err != nil {
			return err
		}
		return first(
			api.ContainerStart(ctx, id, container.StartOptions{}),
			api.ContainerStop(ctx, id, container.StopOptions{Timeout: &timeout, Signal: "SIGKILL"}),
			state(ctx, api, id, "exited"),
		)
	})
}

// walkStreams attaches before the start, as `docker run` does, and speaks with the process.
func walkStreams(ctx context.Context, api *client.Client) error {
	script := "read line; echo got $line; echo bad >&2; cat; exit 4"
	config := &container.Config{
		Cmd: []string{"sh", "-c", script}, OpenStdin: true, StdinOnce: true,
		AttachStdin: true, AttachStdout: true, AttachStderr: true,
	}
	return made(ctx, api, config, nil, func(id string) error {
		options := container.AttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true}
		attached, err := api.ContainerAttach(ctx, id, options)
		if err != nil {
			return err
		}
		defer attached.Close()
		statuses, errs := api.ContainerWait(ctx, id, container.WaitConditionNextExit)
		if err := api.ContainerStart(ctx, id, container.StartOptions{}); err != nil {
			return err
		}
		if _, err := io.WriteString(attached.Conn, "words\nthe rest"); err != nil {
			return err
		}
		if err := attached.CloseWrite(); err != nil {
			return err
		}
		var out, bad bytes.Buffer
		if _, err := stdcopy.StdCopy(&out, &bad, attached.Reader); err != nil {
			return err
		}
		select {
		case status := <-statuses:
			return first(
				want("exit code", status.StatusCode, int64(4)),
				want("output", out.String(), "got words\nthe rest"), want("errors", bad.String(), "bad\n"),
			)
		case err := <-errs:
			return err
		}
	})
}

func walkLogs(ctx context.Context, api *client.Client) error {
	config := &container.Config{Cmd: []string{"sh", "-c", "echo 1; echo 2; echo e >&2; sleep 0.2; echo 3"}}
	return started(ctx, api, config, nil, func(id string) error {
		stream, err := api.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true, ShowStderr: true, Follow: true})
		if err != nil {
			return err
		}
		defer stream.Close()
		var out, bad bytes.Buffer
		if _, err := stdcopy.StdCopy(&out, &bad, stream); err != nil {
			return err
		}
		last, err := api.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true, Tail: "1", Timestamps: true})
		if err != nil {
			return err
		}
		defer last.Close()
		var tail bytes.Buffer
		if _, err := stdcopy.StdCopy(&tail, io.Discard, last); err != nil {
			return err
		}
		if !strings.HasSuffix(tail.String(), "Z 3\n") || strings.Count(tail.String(), "\n") != 1 {
			return fmt.Errorf("the tail is %q", tail.String())
		}
		return first(want("output", out.String(), "1\n2\n3\n"), want("errors", bad.String(), "e\n"))
	})
}

func walkExec(ctx context.Context, api *client.Client) error {
	return started(ctx, api, &container.Config{Cmd: []string{"sleep", "600"}}, nil, func(id string) error {
		options := container.ExecOptions{
			Cmd: []string{"sh", "-c", "echo $A in $PWD; id -u >&2; cat; exit 3"}, Env: []string{"A=b"}, WorkingDir: "/tmp",
			User: "1000", AttachStdin: true, AttachStdout: true, AttachStderr: true,
		}
		made, err := api.ContainerExecCreate(ctx, id, options)
		if err != nil {
			return err
		}
		attached, err := api.ContainerExecAttach(ctx, made.ID, container.ExecAttachOptions{})
		if err != nil {
			return err
		}
		defer attached.Close()
		if _, err := io.WriteString(attached.Conn, "given"); err != nil {
			return err
		}
		if err := attached.CloseWrite(); err != nil {
			return err
		}
		var out, bad bytes.Buffer
		if _, err := stdcopy.StdCopy(&out, &bad, attached.Reader); err != nil {
			return err
		}
		found, err := api.ContainerExecInspect(ctx, made.ID)
		if err != nil {
			return err
		}
		detached, err := api.ContainerExecCreate(ctx, id, container.ExecOptions{Cmd: []string{"true"}, Detach: true})
		if err != nil {
			return err
		}
		return first(
			want("exit code", found.ExitCode, 3), want("running", found.Running, false),
			want("container", found.ContainerID, id),
			want("output", out.String(), "b in /tmp\ngiven"), want("errors", bad.String(), "1000\n"),
			api.ContainerExecStart(ctx, detached.ID, container.ExecStartOptions{Detach: true}),
		)
	})
}

func walkTerminal(ctx context.Context, api *client.Client) error {
	config := &container.Config{
		Cmd: []string{"sh"}, Tty: true, OpenStdin: true, AttachStdin: true, AttachStdout: true, AttachStderr: true,
	}
	return made(ctx, api, config, nil, func(id string) error {
		options := container.AttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true}
		attached, err := api.ContainerAttach(ctx, id, options)
		if err != nil {
			return err
		}
		defer attached.Close()
		if kind, _ := attached.MediaType(); kind != "" && kind != "application/vnd.docker.raw-stream" {
			return fmt.Errorf("the stream is of the type %q", kind)
		}
		if err := first(
			api.ContainerStart(ctx, id, container.StartOptions{}),
			api.ContainerResize(ctx, id, container.ResizeOptions{Height: 33, Width: 77}),
		); err != nil {
			return err
		}
		if _, err := io.WriteString(attached.Conn, "echo 6*$((7*1)); exit 2\n"); err != nil {
			return err
		}
		seen, err := io.ReadAll(attached.Reader)
		if err != nil {
			return err
		}
		if !strings.Contains(string(seen), "\r\n6*7\r\n") {
			return fmt.Errorf("the terminal shows %q", seen)
		}
		code, err := ended(ctx, api, id, container.WaitConditionNotRunning)
		return first(err, want("exit code", code, int64(2)))
	})
}

func walkCopy(ctx context.Context, api *client.Client) error {
	return started(ctx, api, &container.Config{Cmd: []string{"sleep", "600"}}, nil, func(id string) error {
		var archive bytes.Buffer
		writer := tar.NewWriter(&archive)
		content := []byte("copied")
		if err := first(
			writer.WriteHeader(&tar.Header{Name: "a/file", Mode: 0o640, Size: int64(len(content)), Uid: 7}),
		); err != nil {
			return err
		}
		if _, err := writer.Write(content); err != nil {
			return err
		}
		if err := first(writer.Close(), api.CopyToContainer(ctx, id, "/tmp", &archive, container.CopyToContainerOptions{})); err != nil {
			return err
		}
		found, err := api.ContainerStatPath(ctx, id, "/tmp/a/file")
		if err := first(err, want("size", found.Size, int64(6)), want("mode", found.Mode.String(), "-rw-r-----")); err != nil {
			return err
		}
		stream, stat, err := api.CopyFromContainer(ctx, id, "/tmp/a/file")
		if err != nil {
			return err
		}
		defer stream.Close()
		reader := tar.NewReader(stream)
		header, err := reader.Next()
		if err != nil {
			return err
		}
		back, err := io.ReadAll(reader)
		return first(
			err, want("name", stat.Name, "file"), want("member", header.Name, "file"), want("owner", header.Uid, 7),
			want("content", string(back), "copied"),
		)
	})
}

func walkChanges(ctx context.Context, api *client.Client) error {
	return started(ctx, api, &container.Config{Cmd: []string{"touch", "/made"}}, nil, func(id string) error {
		if _, err := ended(ctx, api, id, container.WaitConditionNotRunning); err != nil {
			return err
		}
		changes, err := api.ContainerDiff(ctx, id)
		if err != nil {
			return err
		}
		if len(changes) != 1 || changes[0].Path != "/made" || changes[0].Kind != container.ChangeAdd {
			return fmt.Errorf("the changes are %v", changes)
		}
		tree, err := api.ContainerExport(ctx, id)
		if err != nil {
			return err
		}
		defer tree.Close()
		for reader := tar.NewReader(tree); ; {
			header, err := reader.Next()
			if err != nil {
				return fmt.Errorf("the exported tree has no file made: %w", err)
			}
			if header.Name == "made" {
				break
			}
		}
		report, err := api.ContainersPrune(ctx, filters.NewArgs(filters.Arg("label", "no-such-label")))
		return first(err, want("pruned", len(report.ContainersDeleted), 0))
	})
}

func walkStats(ctx context.Context, api *client.Client) error {
	return started(ctx, api, &container.Config{Cmd: []string{"sleep", "600"}}, nil, func(id string) error {
		once, err := api.ContainerStatsOneShot(ctx, id)
		if err != nil {
			return err
		}
		defer once.Body.Close()
		stream, err := api.ContainerStats(ctx, id, true)
		if err != nil {
			return err
		}
		defer stream.Body.Close()
		lines := json.NewDecoder(bufio.NewReader(stream.Body))
		var single, earlier, later container.StatsResponse
		if err := first(
			json.NewDecoder(once.Body).Decode(&single), lines.Decode(&earlier), lines.Decode(&later),
		); err != nil {
			return err
		}
		if single.MemoryStats.Usage == 0 || later.PidsStats.Current != 1 || !later.Read.After(earlier.Read) ||
			!later.PreRead.Equal(earlier.Read) || later.CPUStats.SystemUsage <= later.PreCPUStats.SystemUsage {
			return fmt.Errorf("the stats are %+v, then %+v", earlier, later)
		}
		return nil
	})
}

func walkErrors(ctx context.Context, api *client.Client) error {
	_, err := api.ContainerInspect(ctx, "no-such-container")
	if !client.IsErrNotFound(err) || !strings.Contains(err.Error(), "No such container: no-such-container") {
		return fmt.Errorf("inspecting a missing container gives %w", err)
	}
	_, err = api.ContainerCreate(ctx, &container.Config{Image: "no-such-image"}, nil, nil, nil, "")
	if !client.IsErrNotFound(err) {
		return fmt.Errorf("a missing image gives %w", err)
	}
	wrong := &network.NetworkingConfig{}
	_, err = api.ContainerCreate(ctx, &container.Config{Image: image}, nil, wrong, nil, "wrong name")
	if err == nil || client.IsErrNotFound(err) || !strings.Contains(err.Error(), "wrong name") {
		return fmt.Errorf("a wrong name gives %w", err)
	}
	return nil
}
