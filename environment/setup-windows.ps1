# Sets the lab up on Windows and ends in the doctor; it can be run again at any time.
#
#   powershell -ExecutionPolicy Bypass -File environment\setup-windows.ps1
#
# Windows PowerShell 5.1, which every Windows has, is enough.
Set-Location (Split-Path -Parent $PSScriptRoot)

# py is the launcher of python.org's installer; conda and the Store have only python.
$python = $null
foreach ($words in @("py", "-3.12"), @("py", "-3.13"), @("py", "-3.11"), @("python")) {
    if (-not (Get-Command $words[0] -ErrorAction SilentlyContinue)) { continue }
    $rest = @($words | Select-Object -Skip 1)
    $version = & $words[0] @rest -c "import sys; print('%d.%d' % sys.version_info[:2])" 2>$null
    if ("$version" -in "3.11", "3.12", "3.13") {
        $python = $words
        break
    }
}
if ($null -eq $python) {
    Write-Host "No Python 3.11, 3.12 or 3.13 was found. This installs one; open a new window afterwards:"
    Write-Host "    winget install Python.Python.3.12"
    exit 1
}

if (Get-Command nvidia-smi -ErrorAction SilentlyContinue) {
    $driver = & nvidia-smi "--query-gpu=driver_version" "--format=csv,noheader" | Select-Object -First 1
    if ("$driver" -match '^(\d+)\.' -and [int]$Matches[1] -lt 528) {
        Write-Host "The NVIDIA driver is $driver, and CUDA 12 needs 528 or newer: install the newest from NVIDIA."
        exit 1
    }
} else {
    Write-Host "nvidia-smi was not found: the lab is set up for the processor."
    Write-Host "If this computer has an NVIDIA card, install its driver, then run this script again. An environment that"
    Write-Host "is there stays as it is; the doctor, at the end, then prints the command that makes it one for the card."
}

$limits = Get-ItemProperty "HKLM:\SYSTEM\CurrentControlSet\Control\FileSystem" -ErrorAction SilentlyContinue
if ($limits.LongPathsEnabled -ne 1) {
    Write-Host "Windows takes paths of up to 260 characters here. Keep this folder's path short, or allow longer ones"
    Write-Host "once, as administrator:"
    Write-Host "    reg add HKLM\SYSTEM\CurrentControlSet\Control\FileSystem /v LongPathsEnabled /t REG_DWORD /d 1 /f"
}

$rest = @($python | Select-Object -Skip 1)
& $python[0] @rest lab.py doctor
exit $LASTEXITCODE
