"""Modal's control plane on this machine: what the real `modal run` and `modal deploy` talk to.

The modal package ships the server's side of its protocol as stubs. This fills in the part that the
scripts in deployment/ need. Functions and servers run in modal's own container entry point, each in a
process of its own with nothing of the checkout in reach but the files that the script asked to mount.
Images are recorded, not built, and GPUs too. A server's container starts at the first request, and until
it listens the answer is 503, as from Modal's proxy, of which nothing else is here.
Written against modal 1.6.4; the protocol is not a public interface.
"""

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from grpclib.server import Server
from modal._utils.grpc_testing import patch_mock_servicer
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientBase

SUCCESS = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
HERE = Path(__file__).parent


class ControlPlane:
    """`with ControlPlane(folder) as modal: modal.command("run", script)`.

    `secrets` and `volumes` are what exists at Modal; `environment` is added to every container's. What the
    script asked for: `functions` {name: api_pb2.Function}, `images` {id: Dockerfile lines}, `mounted`
    {name: paths}, `app_states`, `committed` (volume ids). `exit_codes` and `processes` are the containers',
    by function name; one that ends without an answer is followed by another where the function has retries.
    """

    def __init__(self, folder, environment=None):
        self.folder, self.environment = folder, environment or {}
        self.secrets, self.volumes = {}, {}
        self.functions, self.images, self.mounts = {}, {}, {}
        self.app_states, self.committed = [], []
        self.exit_codes, self.processes = defaultdict(list), defaultdict(list)
        self.servicer = Servicer(self)

    def __enter__(self):
        ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.serve, args=[ready], daemon=True)
        self.thread.start()
        assert ready.wait(30)
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self.servicer.stop_containers(), self.loop).result(60)
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(30)

    def serve(self, ready):
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.listen(ready))

    async def listen(self, ready):
        self.ended = asyncio.Event()
        server = Server([self.servicer])
        await server.start("127.0.0.1", 0)
        self.url = address(server._server)
        ready.set()
        await self.ended.wait()
        server.close()
        await server.wait_closed()

    def add_secret(self, name, **values):
        self.secrets[name] = values

    def volume(self, name):
        """The folder of a volume, made if it is new."""
        path = self.folder / "volumes" / name
        path.mkdir(parents=True, exist_ok=True)
        self.volumes[name] = path
        return path

    def start(self, *arguments, **environment):
        """The modal command as a process with its output in a pipe."""
        own = {"MODAL_SERVER_URL": self.url, "MODAL_TOKEN_ID": "ak-1", "MODAL_TOKEN_SECRET": "as-1"}
        own["MODAL_CONFIG_PATH"] = str(self.folder / "modal.toml")
        inherited = {name: text for name, text in os.environ.items() if name[:6] not in ("MODAL_", "FINELA")}
        return subprocess.Popen(
            [sys.executable, "-m", "modal", *map(str, arguments)],
            cwd=self.folder,
            env=inherited | own | {"COLUMNS": "300"} | self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def command(self, *arguments, **environment):
        """Run the modal command to its end: (exit code, output)."""
        process = self.start(*arguments, **environment)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def server_url(self):
        """The address of the server that was created last."""
        return address(self.servicer.fronts[-1])

    def wait_for_containers(self):
        """Until every container has ended by itself."""
        ended = asyncio.gather(*self.servicer.containers)
        asyncio.run_coroutine_threadsafe(asyncio.wait_for(ended, 60), self.loop).result(60)

    def mounted(self, name):
        """Paths of the files in a function's container: its source and what its image added."""
        return {file.filename for mount in self.functions[name].mount_ids for file in self.mounts[mount]}

    def image_of(self, name):
        """All Dockerfile lines of a function's image, from its base on."""
        lines, image = [], self.functions[name].image_id
        while image:
            added, image = self.images[image]
            lines = [*added, *lines]
        return lines


def respond(function):
    """A unary method: takes the request, gives the response."""

    async def method(self, stream):
        await stream.send_message(await function(self, await stream.recv_message()))

    return method


@patch_mock_servicer
class Servicer(ModalClientBase):
    """The remote procedures; what is not here is answered UNIMPLEMENTED, with its name."""

    def __init__(self, plane):
        self.plane = plane
        self.numbers = itertools.count(1)
        self.objects, self.files = {}, {}
        self.function_ids, self.definitions, self.layout_metadata = {}, {}, {}
        self.inputs, self.unanswered, self.attempts = defaultdict(list), defaultdict(dict), defaultdict(int)
        self.outputs, self.arrived = defaultdict(list), asyncio.Condition()
        self.containers, self.logs, self.app_done = [], asyncio.Queue(), False
        self.contained = set()  # the functions that have a container
        self.deployed, self.fronts, self.ports = {}, [], {}

    def new_id(self, prefix):
        return f"{prefix}-{next(self.numbers)}"

    # The app

    @respond
    async def ClientHello(self, _):
        return api_pb2.ClientHelloResponse()

    @respond
    async def EnvironmentGetOrCreate(self, _):
        settings = api_pb2.EnvironmentSettings(image_builder_version="2025.06")
        metadata = api_pb2.EnvironmentMetadata(name="main", settings=settings)
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    @respond
    async def AppCreate(self, _):
        self.app_done, self.logs, self.function_ids = False, asyncio.Queue(), {}
        return api_pb2.AppCreateResponse(app_id=self.new_id("ap"), app_page_url="http://app.invalid")

    @respond
    async def AppGetByDeploymentName(self, request):
        return api_pb2.AppGetByDeploymentNameResponse(app_id=self.deployed.get(request.name, ""))

    @respond
    async def AppGetLayout(self, _):
        return api_pb2.AppGetLayoutResponse(app_layout=self.layout())

    @respond
    async def AppHeartbeat(self, _):
        return Empty()

    @respond
    async def AppPublish(self, request):
        self.plane.app_states.append(api_pb2.AppState.Name(request.app_state))
        if request.name:
            self.deployed[request.name] = request.app_id
        return api_pb2.AppPublishResponse(url="http://app.invalid", deployed_at=1)

    @respond
    async def AppClientDisconnect(self, _):
        await self.stop_containers()
        await self.logs.put(api_pb2.TaskLogsBatch(app_done=True))
        return Empty()

    async def AppGetLogs(self, stream):
        await stream.recv_message()
        while True:
            batch = await self.logs.get()
            await stream.send_message(batch)
            if batch.app_done:
                return

    # What functions are made of

    @respond
    async def SecretGetOrCreate(self, request):
        name, values = request.deployment_name, dict(request.env_dict)
        if name:
            if name not in self.plane.secrets:
                raise GRPCError(Status.NOT_FOUND, f"Secret '{name}' not found in environment 'main'")
            values = self.plane.secrets[name]
        if missing := [each for each in request.required_keys if each not in values]:
            raise GRPCError(Status.FAILED_PRECONDITION, f"Secret is missing key(s): {', '.join(missing)}")
        secret_id = self.new_id("st")
        self.objects[secret_id] = values
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret_id)

    @respond
    async def VolumeGetOrCreate(self, request):
        name = request.deployment_name
        if request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
            self.plane.volume(name)
        if name not in self.plane.volumes:
            raise GRPCError(Status.NOT_FOUND, f"Volume '{name}' not found in environment 'main'")
        metadata = api_pb2.VolumeMetadata(name=name)
        return api_pb2.VolumeGetOrCreateResponse(volume_id=f"vo-{name}", metadata=metadata)

    @respond
    async def VolumeCommit(self, request):
        self.plane.committed.append(request.volume_id)
        return api_pb2.VolumeCommitResponse(skip_reload=True)

    @respond
    async def VolumeReload(self, _):
        return Empty()

    @respond
    async def ImageGetOrCreate(self, request):
        bases = [base.image_id for base in request.image.base_images]
        image_id = self.new_id("im")
        self.plane.images[image_id] = (list(request.image.dockerfile_commands), bases[0] if bases else None)
        metadata = api_pb2.ImageMetadata(python_version_info="3.12.11", image_builder_version="2025.06")
        return api_pb2.ImageGetOrCreateResponse(image_id=image_id, result=SUCCESS, metadata=metadata)

    @respond
    async def MountBatchedCheckExistence(self, request):
        return api_pb2.MountBatchedCheckExistenceResponse(
            missing_sha256_hex_hashes=[each for each in request.sha256_hex_hashes if each not in self.files]
        )

    @respond
    async def MountPutFile(self, request):
        if request.WhichOneof("data_oneof"):
            self.files[request.sha256_hex] = request.data
        return api_pb2.MountPutFileResponse(exists=request.sha256_hex in self.files)

    @respond
    async def MountGetOrCreate(self, request):
        mount_id = self.new_id("mo")
        self.plane.mounts[mount_id] = list(request.files)
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex=mount_id)
        return api_pb2.MountGetOrCreateResponse(mount_id=mount_id, handle_metadata=metadata)

    # Functions

    @respond
    async def FunctionPrecreate(self, request):
        function_id = request.existing_function_id or self.new_id("fu")
        self.function_ids[request.function_name] = function_id
        metadata = api_pb2.FunctionHandleMetadata(
            function_name=request.function_name,
            function_type=request.function_type,
            function_schema=request.function_schema,
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
        )
        self.layout_metadata[function_id] = metadata
        return api_pb2.FunctionPrecreateResponse(function_id=function_id, handle_metadata=metadata)

    @respond
    async def FunctionCreate(self, request):
        function, function_id = request.function, request.existing_function_id
        self.plane.functions[function.function_name] = self.definitions[function_id] = function
        metadata = self.layout_metadata[function_id]
        if function.is_server:
            metadata._experimental_flash_urls[:] = [await self.open_front(function_id)]
        ranked = api_pb2.FunctionData.RankedFunction(function=function)
        data = api_pb2.FunctionData(function_name=function.function_name, ranked_functions=[ranked])
        return api_pb2.FunctionCreateResponse(
            function_id=function_id, function=function, handle_metadata=metadata, function_data=data
        )

    @respond
    async def FunctionBindParams(self, request):
        function_id = self.new_id("fu")
        function = api_pb2.Function()
        function.CopyFrom(self.definitions[request.function_id])
        options = request.function_options
        if options.replace_secret_ids:
            function.secret_ids[:] = options.secret_ids
        if options.HasField("resources"):
            function.resources.MergeFrom(options.resources)
        function.timeout_secs = options.timeout_secs or function.timeout_secs
        self.plane.functions[function.function_name] = self.definitions[function_id] = function
        metadata = self.layout_metadata[function_id] = self.layout_metadata[request.function_id]
        return api_pb2.FunctionBindParamsResponse(bound_function_id=function_id, handle_metadata=metadata)

    @respond
    async def FunctionMap(self, request):
        call_id = self.new_id("fc")
        items = self.take_in(request.function_id, call_id, request.pipelined_inputs)
        return api_pb2.FunctionMapResponse(function_call_id=call_id, pipelined_inputs=items)

    @respond
    async def FunctionPutInputs(self, request):
        items = self.take_in(request.function_id, request.function_call_id, request.inputs)
        return api_pb2.FunctionPutInputsResponse(inputs=items)

    def take_in(self, function_id, call_id, inputs):
        """Queue a call's inputs and start a container for them, unless the function has one."""
        items = []
        for item in inputs:
            input_id = self.new_id("in")
            self.inputs[function_id].append((call_id, item.idx, input_id, item.input))
            items.append(api_pb2.FunctionPutInputsResponseItem(idx=item.idx, input_id=input_id))
        if items and function_id not in self.contained:
            self.start_container(function_id)
        return items

    @respond
    async def FunctionGetOutputs(self, request):
        outputs, seen = self.outputs[request.function_call_id], int(request.last_entry_id.split("-")[0] or 0)
        with suppress(TimeoutError):
            async with asyncio.timeout(request.timeout), self.arrived:
                await self.arrived.wait_for(lambda: len(outputs) > seen)
        found = outputs[seen:]
        return api_pb2.FunctionGetOutputsResponse(
            idxs=[item.idx for item in found],
            outputs=found,
            last_entry_id=f"{seen + len(found)}-0",
            num_unfinished_inputs=int(not found),
        )

    async def answer(self, call_id, output):
        async with self.arrived:
            self.outputs[call_id].append(output)
            self.arrived.notify_all()

    # Containers

    @respond
    async def ContainerHello(self, _):
        return Empty()

    @respond
    async def ContainerServerLifecycleReady(self, _):
        return Empty()

    async def ContainerHeartbeat(self, stream):
        await stream.recv_message()
        await asyncio.sleep(1)
        await stream.send_message(api_pb2.ContainerHeartbeatResponse())

    @respond
    async def FunctionGetInputs(self, request):
        if not self.inputs[request.function_id]:
            return api_pb2.FunctionGetInputsResponse(inputs=[api_pb2.FunctionGetInputsItem(kill_switch=True)])
        call_id, _, input_id, given = waiting = self.inputs[request.function_id].pop(0)
        self.unanswered[request.function_id][input_id] = waiting
        self.attempts[input_id] += 1
        item = api_pb2.FunctionGetInputsItem(input_id=input_id, input=given, function_call_id=call_id)
        return api_pb2.FunctionGetInputsResponse(inputs=[item])

    @respond
    async def FunctionPutOutputs(self, request):
        for item in request.outputs:
            waiting = next(each for each in self.unanswered.values() if item.input_id in each)
            call_id, idx, input_id, _ = waiting.pop(item.input_id)
            output = api_pb2.FunctionGetOutputsItem(
                result=item.result, idx=idx, input_id=input_id, data_format=item.data_format
            )
            await self.answer(call_id, output)
        return Empty()

    @respond
    async def TaskResult(self, _):
        return Empty()

    def layout(self, function=None):
        """The app's functions, and the images, volumes and secrets that one of them needs."""
        objects = [
            api_pb2.Object(object_id=function_id, function_handle_metadata=metadata)
            for function_id, metadata in self.layout_metadata.items()
        ]
        for needed in function.object_dependencies if function else []:
            metadata = {"volume_metadata": api_pb2.VolumeMetadata()} if needed.object_id[:3] == "vo-" else {}
            objects.append(api_pb2.Object(object_id=needed.object_id, **metadata))
        return api_pb2.AppLayout(objects=objects, function_ids=self.function_ids)

    def start_container(self, function_id):
        """A process that sees the mounted files, the volumes and the secrets, and the stand-in for vLLM."""
        function = self.definitions[function_id]
        root = Path(tempfile.mkdtemp(dir=self.plane.folder))
        for mount in function.mount_ids:
            for file in self.plane.mounts[mount]:
                path = root / Path(file.filename).relative_to("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.files[file.sha256_hex])
        arguments = api_pb2.ContainerArguments(
            task_id=self.new_id("ta"),
            function_id=function_id,
            app_id="ap-1",
            function_def=function,
            app_layout=self.layout(function),
            environment_name="main",
        )
        (root / "arguments").write_bytes(arguments.SerializeToString())
        environment = {
            "PATH": f"{HERE / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(root / "root"),
            "PYTHONUNBUFFERED": "1",
            "HOME": str(root),
            "MODAL_SERVER_URL": self.plane.url,
            "MODAL_TASK_ID": arguments.task_id,
            "MODAL_IS_REMOTE": "1",
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(root / "arguments"),
            "STAND_IN_PYTHON": sys.executable,
        } | self.plane.environment
        if function_id in self.ports:
            environment["STAND_IN_PORT"] = str(self.ports[function_id])
        for secret_id in function.secret_ids:
            environment |= self.objects[secret_id]
        self.contained.add(function_id)
        task = asyncio.create_task(self.run_container(function_id, environment, root))
        self.containers.append(task)

    async def run_container(self, function_id, environment, root):
        name = self.definitions[function_id].function_name
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "modal._container_entrypoint",
            env=environment,
            cwd=root,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        self.plane.processes[name].append(process.pid)
        reading = asyncio.create_task(self.follow(process))
        try:
            await process.wait()
        except asyncio.CancelledError:
            process.terminate()
            await process.wait()
        kill_all_in(root)
        await reading
        self.plane.exit_codes[name].append(process.returncode)
        await self.after_container(function_id)

    async def after_container(self, function_id):
        """Give what it has not answered to another container, or say that there is no answer."""
        self.contained.discard(function_id)
        left = [*self.unanswered.pop(function_id, {}).values(), *self.inputs.pop(function_id, [])]
        again = [each for each in left if self.attempts[each[2]] <= self.retries(function_id)]
        if again and not self.app_done:
            self.inputs[function_id] = again
            self.start_container(function_id)
            left = [each for each in left if each not in again]
        for call_id, idx, input_id, _ in left:
            failed = api_pb2.GenericResult.GENERIC_STATUS_FAILURE
            result = api_pb2.GenericResult(status=failed, exception="the container ended")
            output = api_pb2.FunctionGetOutputsItem(result=result, idx=idx, input_id=input_id)
            await self.answer(call_id, output)

    def retries(self, function_id):
        return self.definitions[function_id].retry_policy.retries

    async def follow(self, process):
        while line := await process.stdout.readline():
            item = api_pb2.TaskLogs(data=line.decode(), file_descriptor=api_pb2.FILE_DESCRIPTOR_STDOUT)
            await self.logs.put(api_pb2.TaskLogsBatch(items=[item]))

    async def open_front(self, function_id):
        """Listen at a server's public address; gives it."""
        front = await asyncio.start_server(partial(self.forward, function_id), "127.0.0.1", 0)
        self.fronts.append(front)
        return address(front)

    async def forward(self, function_id, reader, writer):
        """One connection to a server: 503 until its container listens, then its bytes there and back."""
        if function_id not in self.ports:
            self.ports[function_id] = free_port()
            self.start_container(function_id)
        try:
            there = await asyncio.open_connection("127.0.0.1", self.ports[function_id])
        except OSError:
            writer.write(
                b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            await reader.readuntil(b"\r\n\r\n")
        else:
            await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
        writer.close()

    async def stop_containers(self):
        """As Modal does when an app ends: SIGTERM, then wait."""
        self.app_done = True
        running = [task for task in self.containers if not task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def kill_all_in(root):
    """What a container has left behind, also in sessions of its own, as its end does."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("HOME") == str(root):
                process.kill()


async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


def address(server):
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
